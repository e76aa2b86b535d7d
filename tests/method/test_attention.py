"""When attention is one product after the other, and that it is the same attention."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from utils.attention import FEW_KEYS, attention

FUSED = "ScaledDotProductFlashAttentionForCpuBackward0"
NETWORK = nn.Module()


def make(places: int, keys: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """A query (2, 3, places, 8), keys and values (2, 3, keys, 8) that are learned."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, 3, count, 8, generator=generator).to(dtype).requires_grad_() for count in (places, keys, keys)
    ]


def of_transformers(query: Tensor, key: Tensor, value: Tensor, **settings: object) -> Tensor:
    """What the networks of transformers call, in the shape that `attention` has."""
    found, _ = AttentionInterface()["sdpa"](NETWORK, query, key, value, **settings)
    return found.transpose(1, 2)


def fused(found: Tensor) -> bool:
    """Whether PyTorch's kernel computed it."""
    left = [found.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node.name() == FUSED:
            return True
        left += [before for before, _ in node.next_functions] if node is not None else []
    return False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_few_keys_are_attended_to_without_the_fused_one(dtype, given):
    """How many are few depends on the precision of the products, not on that of the features."""
    few = FEW_KEYS[torch.bfloat16 if given == torch.bfloat16 else dtype]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        for keys in (1, few, few + 1, 200):
            inputs = make(3, keys, given)
            assert fused(attention(*inputs)) == (keys > few)
            assert fused(of_transformers(*inputs, attention_mask=None)) == (keys > few)


def test_what_is_not_learned_is_attended_to_with_the_fused_one(monkeypatch):
    calls = []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *inputs, **_: calls.append(inputs) or inputs[0])
    with torch.no_grad():
        attention(*make(3, 5))
    attention(*(part.detach() for part in make(3, 5)))
    assert len(calls) == 2
    attention(*make(3, 5))
    assert len(calls) == 2


MASKS = {
    "none": None,
    "keys": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()[:, None, None],
    "pairs": torch.ones(5, 5).tril().bool()[None, None],
    "added": torch.arange(5.0)[None, None, None],
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_it_is_the_same_attention(name, scale):
    inputs, mask = make(5, 5), MASKS[name]
    expected = F.scaled_dot_product_attention(*inputs, attn_mask=mask, scale=scale)
    found = attention(*inputs, mask=mask, scale=scale)
    torch.testing.assert_close(found, expected)
    also = of_transformers(*inputs, attention_mask=mask, scaling=scale, is_causal=False)
    torch.testing.assert_close(also, expected)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((part * weight).sum(), inputs) for part in (expected, found, also)]
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


@pytest.mark.parametrize("places", [1, 5])
def test_a_network_whose_places_see_what_lies_before(places):
    """As transformers has it: without a mask a network is causal, unless it says otherwise."""
    inputs = make(places, 5)
    expected = F.scaled_dot_product_attention(*inputs, is_causal=places > 1)
    torch.testing.assert_close(of_transformers(*inputs, attention_mask=None), expected)
    torch.testing.assert_close(of_transformers(*inputs, attention_mask=None, is_causal=True), expected)
    if places > 1:
        torch.testing.assert_close(attention(*inputs, causal=True), expected)


def test_dropout_is_that_of_the_weights():
    torch.manual_seed(0)
    query, key, _ = make(200, 20)
    found = attention(query, key, torch.eye(20).expand(2, 3, 20, 20), dropout=0.25)
    dropped = found == 0
    assert dropped.float().mean() == pytest.approx(0.25, abs=0.02)
    weights = F.softmax(query @ key.mT * 8**-0.5, dim=-1)
    torch.testing.assert_close(found[~dropped], (weights / 0.75)[~dropped])
