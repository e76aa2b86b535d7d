"""Attention of all networks, ours and those of transformers: PyTorch's, or plain products where these are faster."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from utils.device import product_dtype

FEW_KEYS = 128


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention, (N, H, L, D) to keys and values (N, H, S, D): (N, H, L, D).

    In bf16 PyTorch's kernel for CPUs is slow backward where keys are few: with at most `FEW_KEYS` it takes 2 to 8
    times as long as one product after the other. No switch of PyTorch's chooses by their number.
    """
    if _plain_is_faster(query, key, value):
        return _plain(query, key, value)
    return F.scaled_dot_product_attention(query, key, value)


def _plain_is_faster(query: Tensor, key: Tensor, value: Tensor) -> bool:
    learns = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    in_bf16 = query.device.type == "cpu" and product_dtype(query) == torch.bfloat16
    return learns and in_bf16 and key.shape[-2] <= FEW_KEYS


def _plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """One product after the other.

    :param mask: False for keys that are not seen, or what is added to their scores; its shape broadcasts.
    :param scale: of the scores; None: D ** -0.5.
    """
    scores = query.mul(query.shape[-1] ** -0.5 if scale is None else scale) @ key.mT
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask.to(scores.dtype)
    return F.dropout(scores.softmax(-1), dropout) @ value


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
    places = query.shape[2]
    if causal and attention_mask is None and places > 1:  # a single place is the last one: it sees all
        attention_mask = torch.ones(places, key.shape[2], dtype=torch.bool).tril()
    found = _plain(query, key, value, attention_mask, dropout, scaling)
    return found.transpose(1, 2).contiguous(), None


AttentionInterface.register("sdpa", _of_transformers)
