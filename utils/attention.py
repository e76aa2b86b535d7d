"""Attention of all networks, ours and those of transformers: PyTorch's, or plain products where these are faster."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from utils.device import product_dtype

FEW_KEYS = 128


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Scaled dot-product attention, (N, H, L, D) to keys and values (N, H, S, D): (N, H, L, D).

    In bf16 PyTorch's kernel for CPUs is slow backward where keys are few: with at most `FEW_KEYS` it takes 2 to 8
    times as long as one product after the other. No switch of PyTorch's chooses by their number.

    :param mask: False for keys that are not seen, or what is added to their scores; its shape broadcasts.
    :param causal: a place sees itself and those before it.
    :param scale: of the scores; None: D ** -0.5.
    """
    if not _plain_is_faster(query, key, value):
        return F.scaled_dot_product_attention(query, key, value, mask, dropout, causal, scale=scale)
    scores = query.mul(query.shape[-1] ** -0.5 if scale is None else scale) @ key.mT
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask.to(scores.dtype)
        )
    return F.dropout(scores.softmax(-1), dropout) @ value


def _plain_is_faster(query: Tensor, key: Tensor, value: Tensor) -> bool:
    learns = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    in_bf16 = query.device.type == "cpu" and product_dtype(query) == torch.bfloat16
    return learns and in_bf16 and key.shape[-2] <= FEW_KEYS


def _of_transformers(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """`attention` in the place of what transformers calls `sdpa`, whose outputs are (N, L, H, D)."""
    grouped = getattr(module, "num_key_value_groups", 1) > 1
    if grouped or others.get("position_bias") is not None or not _plain_is_faster(query, key, value):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **others)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = causal and attention_mask is None and query.shape[2] > 1  # a single place is the last one: it sees all
    found = attention(query, key, value, attention_mask, dropout, causal, scaling)
    return found.transpose(1, 2).contiguous(), None


AttentionInterface.register("sdpa", _of_transformers)
