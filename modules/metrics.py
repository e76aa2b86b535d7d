"""Retrieval metrics from a score matrix S [text, video], a block of queries at a time.

Reranking. Where only the best K candidates of each query were diffused, the ranking of a query has two parts: its K
candidates by their diffused scores, then the rest of the gallery by the first stage's (undiffused) scores. Each
direction has its own candidates, so that the ranking of a query depends on the query and the gallery alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

RECALL_AT = (1, 5, 10, 50, 100)
DSL_TEMPERATURE = 100.0
BLOCK_ENTRIES = 2**20  # scores looked at at once


@dataclass(frozen=True)
class FirstStage:
    """What chose the pairs that were diffused, and ranks the others."""

    scores: np.ndarray  # (texts, videos), all of them known
    text_floor: np.ndarray  # (texts,): a video is a candidate of a text when its first score is at least this
    video_floor: np.ndarray  # (videos,): likewise for the texts of a video

    def candidates_of_texts(self, texts: slice) -> np.ndarray:
        """Booleans (texts of the slice, videos)."""
        return self.scores[texts] >= self.text_floor[texts, None]

    def candidates_of_videos(self, videos: slice) -> np.ndarray:
        """Booleans (texts, videos of the slice)."""
        return self.scores[:, videos] >= self.video_floor[videos]


def ranks(scores: np.ndarray, target: np.ndarray, in_front: np.ndarray | None = None) -> np.ndarray:
    """Rank of the right candidate of each query, from 1; a tie counts against the model.

    rank = 1 + number of other candidates with score >= that of the right one, so a model that scores everything alike
    ranks last.

    :param scores: (queries, gallery), higher is better.
    :param target: index of the right candidate of each query (queries,).
    :param in_front: booleans (queries, gallery): candidates that rank before all the others, whatever their scores.
    :return: integers (queries,).
    :raises ValueError: a score is NaN or infinite.
    """
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} of {scores.size} scores are NaN or infinite")
    queries = np.arange(len(scores))
    counts = scores >= scores[queries, target][:, None]  # the right one itself is the 1
    if in_front is not None:
        same_part = in_front == in_front[queries, target][:, None]
        counts = np.where(same_part, counts, in_front)
    return counts.sum(axis=1)


def summary(found: np.ndarray, gallery: int) -> dict[str, float]:
    """R@K in percent, median and mean of ranks, sizes of the problem.

    :param found: ranks (queries,).
    :param gallery: number of candidates of each query.
    """
    return {
        **{f"R{k}": 100.0 * int((found <= k).sum()) / len(found) for k in RECALL_AT},
        "MedR": float(np.median(found)),
        "MeanR": float(found.mean()),
        "queries": len(found),
        "gallery": gallery,
    }


def log_sums(scores: np.ndarray, axis: int) -> np.ndarray:
    """log of the sum over an axis of exp(100 S): what the softmax of DSL divides by, for each candidate.

    :param scores: (texts, videos); -inf where there is no score, which then has no part in the sum.
    :param axis: the axis of the queries: 0 for t2v, 1 for v2t.
    :return: float64, (videos,) for axis 0, (texts,) for axis 1; of no score at all -inf.
    """
    total = np.full(scores.shape[1 - axis], -np.inf)
    for rows in row_slices(*scores.shape):
        part = np.logaddexp.reduce(scores[rows].astype(np.float64) * DSL_TEMPERATURE, axis=axis)
        if axis == 0:
            np.logaddexp(total, part, out=total)
        else:
            total[rows] = part
    return total


def dual_softmax(scores: np.ndarray, log_sum: np.ndarray, lift: float = 0.0) -> np.ndarray:
    """DSL (Cheng et al. 2021): S times its softmax over the queries at temperature 100, in float64.

    :param scores: some scores, `log_sum` what `log_sums` gave for them; the shapes broadcast.
    :param lift: added to S, not to its softmax, see `lift_above_zero`.
    """
    scores = scores.astype(np.float64)
    with np.errstate(invalid="ignore"):  # scores that do not exist are not looked at later
        return (scores + lift) * np.exp(scores * DSL_TEMPERATURE - log_sum)


def lift_above_zero(scores: np.ndarray) -> float:
    """What makes all scores that there are at least 0, and is 0 where they are: a share of a negative score is the
    better the smaller it is, which would turn the order of DSL about."""
    lowest = 0.0
    for rows in row_slices(*scores.shape):
        part = scores[rows]
        lowest = min(lowest, float(part.min(where=np.isfinite(part), initial=0.0)))
    return -lowest


def text_to_video(
    scores: np.ndarray, video_of_text: Sequence[int], dsl: bool = False, first: FirstStage | None = None
) -> dict[str, float]:
    """Metrics of finding the video of each text: the `summary` of `text_ranks`."""
    return summary(text_ranks(scores, video_of_text, dsl, first), scores.shape[1])


def video_to_text(
    scores: np.ndarray, video_of_text: Sequence[int], dsl: bool = False, first: FirstStage | None = None
) -> dict[str, float]:
    """Metrics of finding a text of each video: the `summary` of `video_ranks`."""
    return summary(video_ranks(scores, video_of_text, dsl, first), scores.shape[1])


def text_ranks(
    scores: np.ndarray, video_of_text: Sequence[int], dsl: bool = False, first: FirstStage | None = None
) -> np.ndarray:
    """Rank of the video of each text (texts,).

    :param scores: S (texts, videos).
    :param video_of_text: index of the video of each text.
    :param dsl: weigh by the dual softmax.
    :param first: where not all pairs were diffused: S then is -inf where a pair was not. DSL weighs either part of a
        ranking with its own softmax, that of the diffused scores over all queries with which a candidate was diffused.
    """
    owner = np.asarray(video_of_text)
    found = np.empty(len(owner), dtype=np.int64)
    weigh, weigh_first = (_Weights(part, dsl, axis=0) for part in (scores, None if first is None else first.scores))
    for texts in row_slices(*scores.shape):
        block, in_front = weigh(scores[texts]), None
        if first is not None:
            in_front = first.candidates_of_texts(texts)
            block = np.where(in_front, block, weigh_first(first.scores[texts]))
        found[texts] = ranks(block, owner[texts], in_front)
    return found


def video_ranks(
    scores: np.ndarray, video_of_text: Sequence[int], dsl: bool = False, first: FirstStage | None = None
) -> np.ndarray:
    """Rank of the right text of each video (videos,), where every video is represented by its best-scoring text
    (X-Pool), so that there are as many candidates as videos.

    Parameters as in `text_ranks`; every video has at least one text.
    """
    owner = np.asarray(video_of_text)
    by_owner = owner.argsort(kind="stable")
    starts = np.searchsorted(owner[by_owner], np.arange(scores.shape[1]))  # where the texts of each video begin
    found = np.empty(scores.shape[1], dtype=np.int64)
    weigh, weigh_first = (_Weights(part, dsl, axis=1) for part in (scores, None if first is None else first.scores))

    def best_texts(block: np.ndarray) -> np.ndarray:
        """(texts, videos of a slice) -> (videos of the slice, owner of the texts)."""
        return np.maximum.reduceat(block[by_owner], starts, axis=0).T

    for videos in row_slices(*scores.shape[::-1]):
        block, in_front = weigh(scores[:, videos]), None
        if first is None:
            best = best_texts(block)
        else:
            is_candidate = first.candidates_of_videos(videos)
            in_front = np.logical_or.reduceat(is_candidate[by_owner], starts, axis=0).T
            rest = best_texts(weigh_first(first.scores[:, videos]))
            best = np.where(in_front, best_texts(np.where(is_candidate, block, -np.inf)), rest)
        found[videos] = ranks(best, np.arange(videos.start, videos.stop), in_front)
    return found


RANKS = {"t2v": text_ranks, "v2t": video_ranks}  # by direction


def winoground(scores: np.ndarray) -> dict[str, float]:
    """Scores of P pairs of twins (Thrush et al. 2022), in percent; a tie counts against the model.

    text: for both videos the right caption wins; video: for both captions the right video wins; group: both. Chance is
    25, 25 and 16.7.

    :param scores: (P, 2, 2), [pair, caption, video]; caption i is that of video i.
    """
    right = np.diagonal(scores, axis1=1, axis2=2)  # (P, 2)
    text = np.all(right > scores[:, [1, 0], [0, 1]], axis=1)  # the other caption with the same video
    video = np.all(right > scores[:, [0, 1], [1, 0]], axis=1)
    found = {"text": text, "video": video, "group": text & video}
    return {name: 100.0 * int(won.sum()) / len(won) for name, won in found.items()}


class _Weights:
    """Weighs blocks of a matrix by the dual softmax over an axis, if wanted."""

    def __init__(self, scores: np.ndarray | None, dsl: bool, axis: int) -> None:
        self.log_sum, self.lift = None, 0.0
        if dsl and scores is not None:
            sums = log_sums(scores, axis)
            self.log_sum = sums[:, None] if axis == 1 else sums  # of the texts, beside any block of videos
            self.lift = lift_above_zero(scores)

    def __call__(self, block: np.ndarray) -> np.ndarray:
        return block if self.log_sum is None else dual_softmax(block, self.log_sum, self.lift)


def row_slices(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows of a matrix, with about BLOCK_ENTRIES entries each."""
    size = max(1, BLOCK_ENTRIES // max(1, columns))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
