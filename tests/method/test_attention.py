"""When attention is one product after the other, and that it is the same attention."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from utils.attention import FEW_KEYS, attention

FUSED = "ScaledDotProductFlashAttentionForCpuBackward0"
NETWORK = nn.Module()


def make(places: int, keys: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
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


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_few_keys_are_attended_to_without_the_fused_one(given, autocast):
    """Where products are in bf16, whatever the features are in."""
    in_bf16 = autocast or given == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for keys in (1, FEW_KEYS, FEW_KEYS + 1, 200):
            inputs = make(3, keys, given)
            expected = not in_bf16 or keys > FEW_KEYS
            assert fused(attention(*inputs)) == fused(of_transformers(*inputs, attention_mask=None)) == expected


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


def same(found: Tensor, expected: Tensor) -> bool:
    """Up to the rounding of bf16."""
    return found.shape == expected.shape and bool((found - expected).norm() < 0.01 * expected.norm())


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_it_is_the_same_attention(name, scale):
    inputs, mask = make(5, 5), MASKS[name]
    exact = [part.detach().float().requires_grad_() for part in inputs]
    expected = F.scaled_dot_product_attention(*exact, attn_mask=mask, scale=scale)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((expected * weight).sum(), exact)
    ways = [of_transformers(*inputs, attention_mask=mask, scaling=scale, is_causal=False)]
    if mask is None and scale is None:
        ways.append(attention(*inputs))
    for found in ways:
        assert not fused(found) and same(found, expected)
        assert all(map(same, torch.autograd.grad((found * weight).sum(), inputs), gradients))


@pytest.mark.parametrize("places", [1, 5])
def test_a_network_whose_places_see_what_lies_before(places):
    """As transformers has it: without a mask a network is causal, unless it says otherwise."""
    inputs = make(places, 5)
    expected = F.scaled_dot_product_attention(*(part.float() for part in inputs), is_causal=places > 1)
    assert same(of_transformers(*inputs, attention_mask=None), expected)
    assert same(of_transformers(*inputs, attention_mask=None, is_causal=True), expected)


def test_dropout_is_that_of_the_weights():
    torch.manual_seed(0)
    query, key, _ = make(200, 20)
    value = torch.eye(20, dtype=torch.bfloat16).expand(2, 3, 20, 20)
    found = of_transformers(query, key, value, attention_mask=None, dropout=0.25, is_causal=False)
    dropped = found == 0
    assert dropped.float().mean() == pytest.approx(0.25, abs=0.02)
    weights = F.softmax(query.float() @ key.float().mT * 8**-0.5, dim=-1)
    assert same(found[~dropped], weights[~dropped] / 0.75)
