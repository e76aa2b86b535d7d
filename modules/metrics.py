"""Retrieval metrics from a score matrix S [text, video]."""

from collections.abc import Sequence

import numpy as np

RECALL_AT = (1, 5, 10, 50, 100)
DSL_TEMPERATURE = 100.0


def ranks(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rank of the right candidate of each query, from 1; a tie counts against the model.

    rank = 1 + number of other candidates with score >= that of the right one, so a model that scores everything alike
    ranks last.

    :param scores: (queries, gallery), higher is better.
    :param target: index of the right candidate of each query (queries,).
    :return: integers (queries,).
    :raises ValueError: a score is NaN or infinite.
    """
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} of {scores.size} scores are NaN or infinite")
    right = scores[np.arange(len(scores)), target]
    return (scores >= right[:, None]).sum(axis=1)  # the right one itself is the 1


def retrieval_metrics(scores: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """R@K in percent, median and mean rank, sizes of the problem.

    :param scores: (queries, gallery).
    :param target: (queries,).
    """
    found = ranks(scores, target)
    return {
        **{f"R{k}": 100.0 * float((found <= k).mean()) for k in RECALL_AT},
        "MedR": float(np.median(found)),
        "MeanR": float(found.mean()),
        "queries": scores.shape[0],
        "gallery": scores.shape[1],
    }


def dual_softmax(scores: np.ndarray, axis: int) -> np.ndarray:
    """DSL (Cheng et al. 2021): S times its softmax over the queries at temperature 100.

    :param scores: (texts, videos).
    :param axis: the axis of the queries: 0 for t2v, 1 for v2t.
    """
    logits = scores.astype(np.float64) * DSL_TEMPERATURE
    logits -= logits.max(axis=axis, keepdims=True)
    weights = np.exp(logits)
    return scores * (weights / weights.sum(axis=axis, keepdims=True))


def text_to_video(scores: np.ndarray, video_of_text: Sequence[int], dsl: bool = False) -> dict[str, float]:
    """Metrics of finding the video of each text.

    :param scores: S (texts, videos).
    :param video_of_text: index of the video of each text.
    """
    return retrieval_metrics(dual_softmax(scores, axis=0) if dsl else scores, np.asarray(video_of_text))


def video_to_text(scores: np.ndarray, video_of_text: Sequence[int], dsl: bool = False) -> dict[str, float]:
    """Metrics of finding a text of each video, where every video is represented by its best-scoring text (X-Pool).

    :param scores: S (texts, videos).
    :param video_of_text: index of the video of each text; every video has at least one.
    """
    owner = np.asarray(video_of_text)
    if dsl:
        scores = dual_softmax(scores, axis=1)
    best = np.full((scores.shape[1], scores.shape[1]), -np.inf, dtype=scores.dtype)  # (owner of the texts, video)
    np.maximum.at(best, owner, scores)
    return retrieval_metrics(best.T, np.arange(scores.shape[1]))
