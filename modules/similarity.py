"""The similarity engine: score matrices of all (text, video) pairs, streamed in blocks of pairs.

Memory is set by the block: nothing of size texts x videos x D ever exists, only the N x M float32 matrices themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

DEFAULT_BLOCK_PAIRS = 256
SMALL_BLOCK_PAIRS = 32


class PairScorer(Protocol):
    """What the engine needs of a model."""

    def pool(self, texts: object, videos: object, text_index: Tensor, video_index: Tensor) -> Tensor:
        """p(v|t) of pairs, (P, D)."""

    def score_pairs(
        self, texts: object, videos: object, text_index: Tensor, video_index: Tensor, own_pooled: Tensor | None
    ) -> object:
        """PairScores of pairs."""


@dataclass(frozen=True)
class Similarity:
    """Score matrices [text, video], float32."""

    strict: np.ndarray  # cos(text for v, p(v|t))
    published: np.ndarray | None  # cos(text for v, p(v | v's own caption)); None where a video has several captions
    undiffused: np.ndarray  # cos(text as encoded, p(v|t))
    mean_pooled: np.ndarray  # cos(text as encoded, mean of the frames)


@torch.no_grad()
def similarity(
    model: PairScorer,
    texts: object,
    videos: object,
    own_text: Tensor | None = None,
    block_pairs: int = DEFAULT_BLOCK_PAIRS,
    progress: Callable[[int], object] | None = None,
) -> Similarity:
    """Score every text with every video.

    :param texts: N texts, from `model.texts`.
    :param videos: M videos, from `model.videos`.
    :param own_text: for each video the index of its one caption (M,); None where it has several or none, and the
        published protocol is not defined.
    :param block_pairs: pairs scored at once; the scores do not depend on it.
    :param progress: called with the number of pairs after each block.
    :raises ValueError: a feature is NaN or infinite, so that no order of the scores would mean anything.
    """
    for name, features in (("text", texts.features), ("frame", videos.features)):
        if not torch.isfinite(features).all():
            raise ValueError(f"{name} features hold NaN or infinite values")
    num_texts, num_videos = len(texts), len(videos)
    own_pooled = None if own_text is None else _own_pooled(model, texts, videos, own_text, block_pairs)
    strict, undiffused = (np.empty(num_texts * num_videos, dtype=np.float32) for _ in range(2))
    published = None if own_text is None else np.empty_like(strict)
    for start in range(0, num_texts * num_videos, block_pairs):
        pairs = torch.arange(start, min(start + block_pairs, num_texts * num_videos))
        scores = model.score_pairs(texts, videos, pairs // num_videos, pairs % num_videos, own_pooled)
        block = slice(start, start + len(pairs))
        strict[block] = scores.strict.cpu().numpy()
        undiffused[block] = scores.undiffused.cpu().numpy()
        if published is not None:
            published[block] = scores.published.cpu().numpy()
        if progress:
            progress(len(pairs))
    shape = (num_texts, num_videos)
    mean_pooled = F.normalize(texts.features, dim=-1) @ F.normalize(videos.features.mean(1), dim=-1).t()
    return Similarity(
        strict.reshape(shape),
        None if published is None else published.reshape(shape),
        undiffused.reshape(shape),
        mean_pooled.float().cpu().numpy(),
    )


def _own_pooled(model: PairScorer, texts: object, videos: object, own_text: Tensor, block_pairs: int) -> Tensor:
    """p(v | v's own caption) of every video, (M, D)."""
    device = texts.features.device
    blocks = torch.arange(len(videos)).split(block_pairs)
    return torch.cat([model.pool(texts, videos, own_text[block].to(device), block.to(device)) for block in blocks])
