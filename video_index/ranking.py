"""Vectors that are searched for, rankings of segments, and the share of a library that a segment is before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from video_index.store import IndexedSegment

MINUS = 0.5  # how much a text counts that is not wanted, where one that is wanted counts 1
JOINED = 0.75  # a neighbour belongs to a moment if it stands out of the library so much as a share of the best segment


@dataclass(frozen=True)
class Ranking:
    """Pairs of texts and videos, the best first."""

    text_index: Tensor  # (P,)
    video_index: Tensor  # (P,)
    scores: Tensor  # (P,)
    stages: list[str]  # (P,), the latest first

    def head(self, count: int) -> "Ranking":
        """The best `count` pairs."""
        return Ranking(self.text_index[:count], self.video_index[:count], self.scores[:count], self.stages[:count])

    def reordered(self, scores: Tensor, stage: str) -> "Ranking":
        """The first pairs by their scores of a later stage (n,), before the others as they were."""
        scores, order = scores.cpu().sort(descending=True, stable=True)
        count = len(order)
        text_index, video_index, all_scores = (
            torch.cat([new, old[count:]])
            for new, old in (
                (self.text_index[:count][order], self.text_index),
                (self.video_index[:count][order], self.video_index),
                (scores, self.scores),
            )
        )
        return Ranking(text_index, video_index, all_scores, [stage] * count + self.stages[count:])


def combined(texts: Tensor, minus: Tensor, like: Tensor | None) -> Tensor:
    """What is searched for as one vector: the sum of the unit vectors of what is wanted, less MINUS times those of what
    is not. Its length is that of the first text, as T-MASS samples around it by its length.

    :param texts: (n, D), n may be 0; `minus` (m, D) likewise.
    :param like: the segments of a video (W, D), of which the nearest counts; None where there is none.
    :return: (W, D), a vector for each of them; (1, D) without a video.
    """
    if len(texts) == 1 and not len(minus) and like is None:
        return texts
    total = F.normalize(texts, dim=-1).sum(0) - MINUS * F.normalize(minus, dim=-1).sum(0)
    total = total[None] if like is None else total + F.normalize(like, dim=-1)
    return F.normalize(total, dim=-1) * (texts[0].norm() if len(texts) else 1)


def nearest(means: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The cosine of each segment with the nearest of some vectors, and which that is, each (M,). In float32 whatever
    the autocast: shares need cosines that differ.

    :param means: (M, D), of length 1.
    :param vectors: (W, D).
    """
    with torch.autocast(means.device.type, enabled=False):
        return (means @ F.normalize(vectors.float(), dim=-1).t()).max(1)


def shares(ranked: Tensor, searched: Tensor, cosines: Tensor) -> Tensor:
    """The share of a library's segments that score less than each of a ranking, in percent of all others: (P,). The
    only segment of a library is the best one, too.

    Among those that were searched the ranking says which they are, the cosine among the others.

    :param ranked: segments of the ranking, the best first, (P,) in [0, M).
    :param searched: (N,) in [0, M), the ranked ones among them.
    :param cosines: of all segments (M,).
    """
    if len(cosines) == 1:
        return torch.full((len(ranked),), 100.0)
    is_other = torch.ones(len(cosines), dtype=torch.bool)
    is_other[searched] = False
    behind = len(searched) - 1 - torch.arange(len(ranked))
    less = torch.searchsorted(cosines[is_other].sort().values, cosines[ranked])
    return 100 * (behind + less).double() / (len(cosines) - 1)


def moment(
    index: int, segments: Sequence[IndexedSegment], parts: Mapping[tuple[int, int], int], cosines: Tensor
) -> tuple[float | None, float | None]:
    """From when to when a segment goes, in seconds, with the neighbours of its video that fit nearly as well: by their
    cosines they are JOINED of its way from the mean of the library, or more.

    :param parts: the index of each segment by video and part.
    :param cosines: of all segments (M,).
    """
    mean = cosines.mean()
    least = mean + JOINED * (cosines[index] - mean)
    ends = [index, index]
    for side, step in ((0, -1), (1, 1)):
        while True:
            segment = segments[ends[side]]
            neighbour = parts.get((segment.video, segment.part + step))
            if neighbour is None or cosines[neighbour] < least:
                break
            ends[side] = neighbour
    return segments[ends[0]].start, segments[ends[1]].end
