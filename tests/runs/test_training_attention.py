"""Which of PyTorch's attentions a training step is taken with."""

import pytest
import torch
from torch.nn import functional as F

from tests.runs.test_training_step import CAPTIONS, make_batch, make_model
from trainer.training_step import TrainingStep
from utils.device import training_attention

CPU = torch.device("cpu")
FUSED = "ScaledDotProductFlashAttentionForCpuBackward0"


def attention_of(keys: int) -> str:
    """What the backward pass of an attention to `keys` keys is called, by place and by name."""
    query, key = (torch.ones(1, 2, count, 8, dtype=torch.bfloat16, requires_grad=True) for count in (3, keys))
    by_place = F.scaled_dot_product_attention(query, key, key).grad_fn.name()
    assert F.scaled_dot_product_attention(query, key=key, value=key).grad_fn.name() == by_place
    return by_place


def test_few_keys_are_attended_to_without_the_fused_one():
    with training_attention(CPU, torch.bfloat16):
        assert attention_of(50) != FUSED == attention_of(200)
    assert attention_of(50) == FUSED  # as in an evaluation, which has no backward pass


@pytest.mark.parametrize(("kind", "dtype"), [("cpu", torch.float32), ("cuda", torch.bfloat16)])
def test_elsewhere_the_fused_one_is_taken(kind, dtype):
    with training_attention(torch.device(kind), dtype):
        assert attention_of(50) == FUSED


@pytest.mark.parametrize("arch", ["textdiffs", "published"])
def test_a_step_has_the_gradients_of_the_fused_one(arch):
    """Up to the rounding of bf16, and in chunks, whose backward pass encodes again."""
    gradients = {}
    for name, chunks in (("fused", 1), ("plain", 1), ("in chunks", 4)):
        model = make_model(arch)
        step, batch = TrainingStep(model, chunks, CPU, torch.bfloat16), make_batch(model, range(len(CAPTIONS)))
        with training_attention(CPU, torch.float32 if name == "fused" else torch.bfloat16):
            sum(step(*batch).values()).backward()
        gradients[name] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert F.cosine_similarity(gradients["fused"], gradients["plain"], dim=0) > 0.995
    torch.testing.assert_close(gradients["in chunks"].norm(), gradients["plain"].norm(), rtol=0.01, atol=0)
