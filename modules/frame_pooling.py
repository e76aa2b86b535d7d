"""Frame pooling: one embedding of a video for each text that asks about it (Gorti et al. 2022).

FramePooling is X-Pool's cross-attention; SimplePooling holds the poolings without parameters, with the same methods.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.errors import InputError


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


@dataclass(frozen=True)
class PoolingAtoms:
    """What p(v|t) is a combination of, for M videos and n = heads x frames.

    Everything behind the attention is linear but for two divisions by a standard deviation, so p(v|t) lies in the span
    of n + 2 vectors that depend on the video alone, and its norm and its product with a text need only their products.
    """

    attended_gram: Tensor  # products of the centred outputs of the attention (M, n, n), divided by D
    projected_gram: Tensor  # of the centred atoms behind the last linear layer and its constant (M, n+1, n+1), by D
    pooled_gram: Tensor  # of the atoms of p(v|t) (M, n+2, n+2)
    atoms: Tensor  # of p(v|t): (M, n+2, D)


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

    def atoms(self, values: Tensor) -> PoolingAtoms:
        """Values (M, F, heads, D / heads), from `keys_values`, to what `cosines` needs. Evaluation only: no dropout."""
        norm2, norm3, out = self.layer_norm2, self.layer_norm3, self.cross_attn.out_proj
        heads, width = values.shape[2], out.out_features
        by_head = out.weight.unflatten(1, (heads, -1))  # (D, heads, D / heads)
        outputs = torch.einsum("vfhd,ehd->vhfe", values, by_head) + out.bias / heads
        outputs = _centred(outputs.flatten(1, 2))  # (M, n, D)
        scaled = norm2.weight * outputs
        constant = _centred(norm2.bias + self.linear_proj(norm2.bias))
        projected = _centred(scaled + F.linear(scaled, self.linear_proj.weight))
        projected = torch.cat([projected, constant.expand(len(values), 1, -1)], dim=1)
        pooled = torch.cat([norm3.weight * projected, norm3.bias.expand(len(values), 1, -1)], dim=1)
        return PoolingAtoms(_gram(outputs) / width, _gram(projected) / width, _gram(pooled), pooled)

    def cosines(self, texts: Tensor, queries: Tensor, keys: Tensor, atoms: PoolingAtoms) -> Tensor:
        """cos(t, p(v|t)) of every text with every video, without making p(v|t).

        F x D operations a pair instead of 4 x D x D, and nothing of size texts x videos x D.

        :param texts: text features (T, D), `queries` what `queries` gives for them.
        :param keys: (V, F, heads, D / heads), and `atoms`, of the same videos.
        :return: (T, V).
        """
        weights = torch.einsum("thd,vfhd->vthf", queries, keys).softmax(-1).flatten(2)  # (V, T, n)
        weights = _append_one(weights / _norm(weights, atoms.attended_gram, self.layer_norm2.eps))
        weights = _append_one(weights / _norm(weights, atoms.projected_gram, self.layer_norm3.eps))
        products = torch.einsum("td,vnd->vtn", F.normalize(texts, dim=-1), atoms.atoms)
        return ((weights * products).sum(-1) / _norm(weights, atoms.pooled_gram, 0.0)[..., 0]).t()

    def _project(self, attended: Tensor) -> Tensor:
        x = self.layer_norm2(self.cross_attn.out_proj(attended.flatten(-2)))
        return self.layer_norm3(x + self.dropout(self.linear_proj(x)))


class SimplePooling(nn.Module):
    """Unit frame features weighed by a rule: all alike, the k most similar to the text, or a softmax of similarity.

    The baselines of X-Pool's code base, which normalises texts and frames first. No parameters. p(v|t) is a weighted
    mean of frames, so its norm and its product with a text follow from the frames' products alone.

    :param kind: avg, topk or attention.
    :param k: frames of topk.
    :param temperature: of attention: softmax(cosine / temperature).
    """

    def __init__(self, kind: Literal["avg", "topk", "attention"], k: int = -1, temperature: float = 0.01) -> None:
        super().__init__()
        self.kind, self.k, self.temperature = kind, k, temperature

    def queries(self, texts: Tensor) -> Tensor:
        """Text features (T, D) -> unit vectors (T, 1, D): one head."""
        return F.normalize(texts.float(), dim=-1)[..., None, :]

    def keys_values(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frame features (V, F, D) -> unit vectors, twice (V, F, 1, D)."""
        frames = F.normalize(frames.float(), dim=-1)[..., None, :]
        return frames, frames

    def weights(self, cosines: Tensor) -> Tensor:
        """Weights of the frames, which sum to 1, from their cosines with a text; both (..., F)."""
        if self.kind == "avg":
            return torch.full_like(cosines, 1 / cosines.shape[-1])
        if self.kind == "topk":
            return torch.zeros_like(cosines).scatter(-1, cosines.topk(self.k, dim=-1).indices, 1 / self.k)
        return (cosines / self.temperature).softmax(-1)

    def forward(self, texts: Tensor, frames: Tensor) -> Tensor:
        """Pool every video for every text.

        :param texts: text features (T, D).
        :param frames: frame features (V, F, D).
        :return: p(v|t), (V, T, D), float32: a temperature of 0.01 is too fine for half precision.
        """
        with torch.autocast(frames.device.type, enabled=False):
            keys, values = self.keys_values(frames)
            cosines = torch.einsum("thd,vfhd->vtf", self.queries(texts), keys)
            return torch.einsum("vtf,vfhd->vtd", self.weights(cosines), values)

    def pool_pairs(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Pool P videos, each for one text, from what `queries` and `keys_values` gave.

        :param queries: (P, 1, D).
        :param keys: (P, F, 1, D), `values` likewise.
        :return: p(v|t), (P, D), float32.
        """
        with torch.autocast(keys.device.type, enabled=False):
            cosines = torch.einsum("phd,pfhd->pf", queries, keys)
            return torch.einsum("pf,pfhd->pd", self.weights(cosines), values)

    def atoms(self, values: Tensor) -> Tensor:
        """Values (M, F, 1, D) -> products of the frames of each video (M, F, F), which `cosines` needs."""
        return _gram(values[:, :, 0])

    def cosines(self, texts: Tensor, queries: Tensor, keys: Tensor, atoms: Tensor) -> Tensor:
        """cos(t, p(v|t)) of every text with every video, without making p(v|t): (T, V).

        :param texts: text features (T, D), whose unit vectors are `queries` (T, 1, D).
        :param keys: (V, F, 1, D), and `atoms`, of the same videos.
        """
        cosines = torch.einsum("thd,vfhd->vtf", queries, keys)
        weights = self.weights(cosines)
        return ((weights * cosines).sum(-1) / _norm(weights, atoms, 0.0)[..., 0]).t()


def _centred(x: Tensor) -> Tensor:
    """Without its mean over the last dimension, as layer normalisation does first."""
    return x - x.mean(-1, keepdim=True)


def _gram(vectors: Tensor) -> Tensor:
    """(M, n, D) -> products of all pairs (M, n, n)."""
    return vectors @ vectors.transpose(1, 2)


def _norm(weights: Tensor, gram: Tensor, eps: float) -> Tensor:
    """sqrt(w' G w + eps) of weights (V, T, n) and Gram matrices (V, n, n): (V, T, 1)."""
    return ((weights @ gram) * weights).sum(-1, keepdim=True).clamp_min(0).add(eps).sqrt()


def _append_one(weights: Tensor) -> Tensor:
    """(V, T, n) -> (V, T, n + 1): the weight of a constant vector."""
    return F.pad(weights, (0, 1), value=1.0)


def mean_of_frames(frames: Tensor) -> Tensor:
    """The mean of the unit frame features of each video, whatever the text: (V, F, D) -> (V, D), float32."""
    return F.normalize(frames.float(), dim=-1).mean(1)
