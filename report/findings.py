"""What a report tells of the score matrices: the rank of every query, and what was found in its place."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from evaluation.results import PROTOCOLS, REFERENCES
from modules.metrics import RANKS, row_slices
from modules.similarity import Similarity

HITS = 5  # shown of each query
CASES = 6  # the best and the worst queries
SAMPLED = 12  # queries taken evenly from all
IN_FRONT = 2.0  # more than a cosine, the score of the first stage
HISTOGRAM_BOUNDS = (1, 2, 3, 5, 10, 20, 50)  # last rank of each bin; then 100, 200, 500, 1000, ...


@dataclass(frozen=True)
class RankedVideo:
    """A video at its place in the ranking of a text."""

    video: int
    rank: int
    score: float
    first_stage: bool  # the pair was not diffused: the score is that of the original text embedding
    right: bool


@dataclass(frozen=True)
class Query:
    """A text with the videos that were found, best first; the right one is the last of them if it is not among the
    best."""

    text: int
    rank: int
    hits: list[RankedVideo]


@dataclass(frozen=True)
class RankedText:
    """A text at its place in the ranking of a video: of the texts of one video only the best has a place."""

    text: int
    rank: int
    score: float
    first_stage: bool
    right: bool


@dataclass(frozen=True)
class VideoQuery:
    """A video with the texts that were found, as `Query`."""

    video: int
    rank: int
    hits: list[RankedText]


@dataclass(frozen=True)
class Findings:
    """Strict results of single queries, and ranks by every kind of score."""

    ranks: dict[str, dict[str, np.ndarray]]  # by direction (t2v, v2t), then by kind of score: (queries,)
    gallery: int
    best: list[Query]  # found first with the widest gap to the runner-up
    worst: list[Query]
    sample: list[Query]  # evenly from all
    worst_videos: list[VideoQuery]
    sampled_videos: list[VideoQuery]


def find(scores: Similarity, video_of_text: Sequence[int]) -> Findings:
    """Look at score matrices, which may lie on disk: some texts at a time.

    :param video_of_text: index of the right video of each text.
    """
    kinds = {name: matrix for name in (*PROTOCOLS, *REFERENCES) if (matrix := getattr(scores, name)) is not None}
    ranks = {
        direction: {
            name: ranks_of(matrix, video_of_text, first=scores.first if name in PROTOCOLS else None)
            for name, matrix in kinds.items()
        }
        for direction, ranks_of in RANKS.items()
    }
    found = ranks["t2v"]["strict"]
    order = np.lexsort((-_gaps(scores, np.asarray(video_of_text)), found))  # by rank, then by gap
    cases = {"best": order[:CASES], "worst": order[::-1][:CASES], "sample": evenly(len(found), SAMPLED)}
    queries = {
        name: [_query(scores, int(text), int(video_of_text[text]), int(found[text])) for text in texts]
        for name, texts in cases.items()
    }
    found, owner = ranks["v2t"]["strict"], np.asarray(video_of_text)
    cases = {"worst_videos": np.argsort(-found, kind="stable")[:CASES], "sampled_videos": evenly(len(found), CASES)}
    videos = {
        name: [_video_query(scores, int(video), owner, int(found[video])) for video in chosen]
        for name, chosen in cases.items()
    }
    return Findings(ranks, scores.strict.shape[1], **queries, **videos)


def evenly(count: int, wanted: int) -> np.ndarray:
    """At most so many of the numbers below `count`, evenly from all of them."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int))


def recall_curve(ranks: np.ndarray, gallery: int) -> np.ndarray:
    """R@K in percent for K = 1 to the size of the gallery, (gallery,)."""
    return 100 * np.bincount(ranks - 1, minlength=gallery).cumsum() / len(ranks)


def rank_histogram(ranks: np.ndarray, gallery: int) -> list[tuple[str, int]]:
    """Bins of ranks ("6–10") and how many queries have one of them; together they hold all ranks of the gallery."""
    bounds = list(HISTOGRAM_BOUNDS)
    while bounds[-1] < gallery:
        bounds.append(bounds[-3] * 10)
    bounds = [0, *(bound for bound in bounds if bound < gallery), gallery]
    counts = np.histogram(ranks, np.add(bounds, 1))[0].tolist()
    names = [f"{high}" if high == low + 1 else f"{low + 1}–{high}" for low, high in pairwise(bounds)]
    return list(zip(names, counts, strict=True))


def _keys(scores: Similarity, texts: slice) -> np.ndarray:
    """What some texts rank the videos by, float64 (texts, videos)."""
    values = scores.strict[texts].astype(np.float64)
    if scores.first is None:
        return values
    return _in_front(scores.first.candidates_of_texts(texts), values, scores.first.scores[texts])


def _keys_of_video(scores: Similarity, video: int) -> tuple[np.ndarray, np.ndarray]:
    """What a video ranks the texts by, float64 (texts,), and which of these pairs were diffused for it."""
    values = scores.strict[:, video].astype(np.float64)
    if scores.first is None:
        return values, np.ones(len(values), dtype=bool)
    candidates = scores.first.candidates_of_videos(slice(video, video + 1))[:, 0]
    return _in_front(candidates[None], values[None], scores.first.scores[None, :, video])[0], candidates


def _in_front(candidates: np.ndarray, values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Keys of queries (queries, gallery) of which only some pairs were diffused: these in front of the others.

    :param candidates: whether a pair was diffused, `values` what it then scores, `first` what it scores else.
    """
    lowest = np.where(candidates, values, np.inf).min(axis=1, keepdims=True)
    return np.where(candidates, values - lowest + IN_FRONT, first)


def _gaps(scores: Similarity, right: np.ndarray) -> np.ndarray:
    """How far the right video of each text is ahead of the best other one, by `_keys`: (texts,)."""
    gaps = np.empty(len(right))
    for texts in row_slices(*scores.strict.shape):
        keys, own = _keys(scores, texts), right[texts, None]
        own_keys = np.take_along_axis(keys, own, axis=1)[:, 0]
        np.put_along_axis(keys, own, -np.inf, axis=1)
        gaps[texts] = own_keys - keys.max(axis=1)
    return gaps


def _query(scores: Similarity, text: int, right: int, rank: int) -> Query:
    keys = _keys(scores, slice(text, text + 1))[0]
    is_right = np.arange(len(keys)) == right
    order = np.lexsort((is_right, -keys))  # ties count against the model
    shown = [*enumerate(order[:HITS].tolist(), start=1)]
    if rank > HITS:
        shown.append((rank, right))
    hits = [
        RankedVideo(video, place, _score(scores, text, video), not _diffused(scores, text, video), video == right)
        for place, video in shown
    ]
    return Query(text, rank, hits)


def _video_query(scores: Similarity, video: int, owner: np.ndarray, rank: int) -> VideoQuery:
    """:param owner: index of the right video of each text (texts,)."""
    keys, diffused = _keys_of_video(scores, video)
    order = np.lexsort((owner == video, -keys))  # ties count against the model
    best = order[np.sort(np.unique(owner[order], return_index=True)[1])]  # text of each video
    shown = [*enumerate(best[:HITS].tolist(), start=1)]
    if rank > HITS:
        shown.append((rank, int(best[rank - 1])))
    hits = [
        RankedText(
            text, place, float((scores.strict if diffused[text] else scores.undiffused)[text, video]),
            not diffused[text], bool(owner[text] == video),
        )
        for place, text in shown
    ]  # fmt: skip
    return VideoQuery(video, rank, hits)


def _diffused(scores: Similarity, text: int, video: int) -> bool:
    """Whether the ranking of a text reads the strict score of a video."""
    return scores.first is None or bool(scores.first.scores[text, video] >= scores.first.text_floor[text])


def _score(scores: Similarity, text: int, video: int) -> float:
    matrix = scores.strict if _diffused(scores, text, video) else scores.undiffused
    return float(matrix[text, video])
