"""What an evaluation found: metrics of score matrices, tables for people, results.json."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from config import Config
from datasets.annotations import Split
from datasets.holdout import Selection
from evaluation.motion import format_motion
from model.clip import clean_caption
from modules.metrics import text_to_video, video_to_text
from modules.similarity import Similarity
from utils.files import written_or_refused
from utils.tables import aligned

PROTOCOLS = ("strict", "published")

METRICS = {"t2v": text_to_video, "v2t": video_to_text}

REFERENCES = {"undiffused": "original text embedding", "mean_pooled": "mean pooling"}


@dataclass(frozen=True)
class SharedCaptions:
    """Captions that several videos of a split have. A search by one of them finds one of these videos first, and for
    the others that counts as wrong."""

    captions: int  # different ones
    texts: int  # of the split that are one of them
    best_t2v_R1: float  # R@1 of a search that finds nothing else wrong, in percent

    @classmethod
    def of(cls, split: Split) -> "SharedCaptions":
        """Captions are equal where CLIP reads the same, see `clean_caption`."""
        owners: dict[str, Counter[int]] = defaultdict(Counter)
        for caption, segment in zip(split.captions, split.segment_of_caption, strict=True):
            owners[clean_caption(caption)][segment] += 1
        shared = [segments for segments in owners.values() if len(segments) > 1]
        wrong = sum(segments.total() - max(segments.values()) for segments in shared)
        texts = len(split.captions)
        return cls(len(shared), sum(segments.total() for segments in shared), round(100 * (1 - wrong / texts), 2))


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one evaluation."""

    results: list[dict[str, Any]]  # one row for each metric, protocol and dsl
    references: list[dict[str, Any]]  # the same model scored with original text embeddings and with mean pooling
    seconds: float
    similarity_seconds: float = 0.0  # the part of it that scored pairs
    pairs_diffused: int = 0
    videos: int = 0  # that were evaluated
    annotated: int = 0  # that the split has; more where --allow_missing left some out
    beyond: int = 0  # of the videos, segments whose times are not in their files, see `datasets.failures.TimesBeyond`
    split: str = "test"
    shared_captions: SharedCaptions = SharedCaptions(0, 0, 100.0)
    motion: list[dict[str, Any]] = field(default_factory=list)  # Winoground scores, of the twins of MovingShapes

    def row(self, metric: str, protocol: str = "strict", dsl: bool = False) -> dict[str, Any]:
        """The row of a metric (t2v, v2t), protocol and dsl."""
        return next(
            row for row in self.results if (row["metric"], row["protocol"], row["dsl"]) == (metric, protocol, dsl)
        )


def save_similarity(path: Path, scores: Similarity, video_of_text: Sequence[int]) -> None:
    """Write an npz file: matrices [text, video] strict, undiffused, mean_pooled, and published where it is defined,
    video_of_text; after reranking also text_floor and video_floor, from which first-stage score on a pair was diffused
    (strict and published are -inf where it was not).

    :raises InputError: the file cannot be written.
    """
    arrays = {name: getattr(scores, name) for name in (*PROTOCOLS, *REFERENCES)}
    arrays["video_of_text"] = np.asarray(video_of_text)
    if scores.first is not None:
        arrays |= {"text_floor": scores.first.text_floor, "video_floor": scores.first.video_floor}
    refusal = f"score matrices cannot be written to {path}"
    with written_or_refused(path, refusal) as unfinished, open(unfinished, "wb") as file:
        np.savez(file, **{name: array for name, array in arrays.items() if array is not None})


def evaluate_similarity(
    scores: Similarity, video_of_text: Sequence[int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Metrics of score matrices: rows for every metric, protocol and dsl; and those of the references."""
    results = [
        {"metric": metric, "protocol": protocol, "dsl": dsl} | METRICS[metric](matrix, video_of_text, dsl, scores.first)
        for metric in METRICS
        for protocol in PROTOCOLS
        if (matrix := getattr(scores, protocol)) is not None
        for dsl in (False, True)
    ]
    references = [
        {"metric": metric, "scores": name, "dsl": dsl} | METRICS[metric](getattr(scores, name), video_of_text, dsl)
        for metric in METRICS
        for name in REFERENCES
        for dsl in (False, True)
    ]
    return results, references


COLUMNS = ("R1", "R5", "R10", "R50", "R100", "MedR", "MeanR")


def format_table(evaluation: Evaluation, metric: str, dsl: bool, selection: Selection | None = None) -> str:
    """A recall table for people: rows of one direction, with DSL rows if wanted.

    The last rows score the same checkpoint with the original text embeddings and with plain mean pooling.

    :param selection: what chose the checkpoint, which is told below the table; None while none is chosen yet.
    """
    wanted = (False, True) if dsl else (False,)
    lines = [
        (f"{metric} {row['protocol']}{' DSL' if row['dsl'] else ''}", row)
        for row in evaluation.results
        if row["metric"] == metric and row["dsl"] in wanted
    ] + [
        (f"{metric} {REFERENCES[row['scores']]}{' DSL' if row['dsl'] else ''}", row)
        for row in evaluation.references
        if row["metric"] == metric and row["dsl"] in wanted
    ]
    told = [_table(lines)]
    if evaluation.motion:
        told.append(format_motion(evaluation.motion, REFERENCES))
    if selection is not None:
        told.append(f"{evaluation.split} split; model {selection}")
    shared = evaluation.shared_captions
    if shared.captions:
        told.append(
            f"captions that several videos have: {shared.captions} ({shared.texts} of the texts); one video counts as "
            f"right, so R@1 of t2v is at most {shared.best_t2v_R1:.1f}"
        )
    if evaluation.videos < evaluation.annotated:
        videos = f"{evaluation.videos} of {evaluation.annotated} {evaluation.split} videos"
        told.append(f"{videos}: not comparable with the whole {evaluation.split} set")
    return "\n".join(told)


def _table(lines: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Labelled rows of metrics as aligned text."""
    columns = {name: f"R@{name[1:]}" if name[0] == "R" else name for name in COLUMNS}
    return aligned(lines, columns, "   queries x gallery", lambda row: f"   {row['queries']} x {row['gallery']}")


def write_results(
    path: Path, evaluation: Evaluation, config: Config, checkpoint: str | None, selection: Selection
) -> None:
    """Write results.json.

    :param checkpoint: file that was evaluated, None for an untrained model.
    :param selection: what chose it.
    """
    report = {
        "dataset": config.dataset_name,
        "split": evaluation.split,
        "checkpoint": checkpoint,
        "selected_on": selection.to_dict(),
        "arch": config.arch,
        "recipe": config.recipe,
        "sampler": config.sampler,
        "sampling_steps": config.sampling_steps,
        "rerank_topk": config.rerank_topk,
        "pairs_diffused": evaluation.pairs_diffused,
        "seconds": round(evaluation.seconds, 3),
        "seconds_similarity": round(evaluation.similarity_seconds, 3),
        "test_videos": {
            "evaluated": evaluation.videos,
            "annotated": evaluation.annotated,
            "times_not_in_file": evaluation.beyond,
        },
        "shared_captions": asdict(evaluation.shared_captions),
        "results": evaluation.results,
        "references": evaluation.references,
    } | ({"motion": evaluation.motion} if evaluation.motion else {})
    with written_or_refused(path, f"results cannot be written to {path}") as unfinished:
        unfinished.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
