"""Frame pooling: one embedding of a video for each text that asks about it (X-Pool, Gorti et al. 2022)."""

import math

import torch
from torch import Tensor, nn

from diffusion_lm.errors import InputError


class MultiHeadedAttention(nn.Module):
    """Attention of texts (queries) over the frames of videos (keys and values)."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise InputError(f"--num_mha_heads={num_heads} does not divide the embedding width {embed_dim}")
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def split_heads(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., heads, D / heads)."""
        return x.unflatten(-1, (self.num_heads, self.head_dim))


class FramePooling(nn.Module):
    """X-Pool's cross-attention block: p(v|t), the frames of v pooled by what t looks for.

    :param embed_dim: D.
    :param num_heads: attention heads.
    :param dropout: on the last linear layer.
    """

    def __init__(self, embed_dim: int, num_heads: int = 1, dropout: float = 0.3) -> None:
        super().__init__()
        self.cross_attn = MultiHeadedAttention(embed_dim, num_heads)
        self.linear_proj = nn.Linear(embed_dim, embed_dim)
        self.layer_norm1 = nn.LayerNorm(embed_dim)
        self.layer_norm2 = nn.LayerNorm(embed_dim)
        self.layer_norm3 = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.eye_(module.weight)
                nn.init.zeros_(module.bias)

    def queries(self, texts: Tensor) -> Tensor:
        """Text features (T, D) -> queries (T, heads, D / heads), scaled by 1 / sqrt(head width)."""
        attention = self.cross_attn
        return attention.split_heads(attention.q_proj(self.layer_norm1(texts))) / math.sqrt(attention.head_dim)

    def keys_values(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frame features (V, F, D) -> keys and values, each (V, F, heads, D / heads)."""
        attention = self.cross_attn
        frames = self.layer_norm1(frames)
        return attention.split_heads(attention.k_proj(frames)), attention.split_heads(attention.v_proj(frames))

    def forward(self, texts: Tensor, frames: Tensor) -> Tensor:
        """Pool every video for every text.

        :param texts: text features (T, D).
        :param frames: frame features (V, F, D).
        :return: p(v|t), (V, T, D).
        """
        keys, values = self.keys_values(frames)
        weights = torch.einsum("thd,vfhd->vthf", self.queries(texts), keys).softmax(-1)
        return self._project(torch.einsum("vthf,vfhd->vthd", weights, values))

    def pool_pairs(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Pool P videos, each for one text, from what `queries` and `keys_values` gave.

        :param queries: (P, heads, D / heads).
        :param keys: (P, F, heads, D / heads), `values` likewise.
        :return: p(v|t), (P, D).
        """
        weights = torch.einsum("phd,pfhd->phf", queries, keys).softmax(-1)
        return self._project(torch.einsum("phf,pfhd->phd", weights, values))

    def _project(self, attended: Tensor) -> Tensor:
        x = self.layer_norm2(self.cross_attn.out_proj(attended.flatten(-2)))
        return self.layer_norm3(x + self.dropout(self.linear_proj(x)))
