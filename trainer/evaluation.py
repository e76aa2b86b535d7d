"""Evaluation of a model on a test split, under both protocols and in both directions."""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from config import Config
from datasets.annotations import Split
from datasets.frame_cache import CacheSettings
from datasets.loading import TestVideos, batches, test_loader
from diffusion_lm.errors import InputError
from model.xpool import Texts, Videos, XPool
from modules.metrics import text_to_video, video_to_text
from modules.similarity import DEFAULT_BLOCK_PAIRS, SMALL_BLOCK_PAIRS, Similarity, similarity
from trainer.device import autocast

logger = logging.getLogger(__name__)

PROTOCOLS = ("strict", "published")
METRICS = {"t2v": text_to_video, "v2t": video_to_text}
REFERENCES = {"undiffused": "no diffusion", "mean_pooled": "mean pooling"}


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one evaluation."""

    results: list[dict[str, Any]]  # one row for each metric, protocol and dsl
    references: list[dict[str, Any]]  # the same model scored without diffusion and with mean pooling
    seconds: float
    videos: int = 0  # that were evaluated
    annotated: int = 0  # that the test split has; more where --allow_missing left some out

    def row(self, metric: str, protocol: str = "strict", dsl: bool = False) -> dict[str, Any]:
        """The row of a metric (t2v, v2t), protocol and dsl."""
        return next(
            row for row in self.results if (row["metric"], row["protocol"], row["dsl"]) == (metric, protocol, dsl)
        )


class Evaluator:
    """Evaluates models on one split; decodes in a fixed order and tokenises once.

    :param split: the test split.
    :param config: batch and block sizes, frames.
    :param dtype: of the matrix products.
    """

    def __init__(self, split: Split, config: Config, device: torch.device, dtype: torch.dtype) -> None:
        self.split, self.config, self.device, self.dtype = split, config, device, dtype
        videos = TestVideos(split, config.num_frames, config.input_res, CacheSettings.of(config))
        self.loader = test_loader(videos, config.batch_size, config.num_workers, device.type == "cuda")
        owner = split.clip_of_caption
        single = len(owner) == len(split.clips) and len(set(owner)) == len(owner)
        self.own_text = torch.tensor(owner).argsort() if single else None
        self.block_pairs = (
            config.batch_size_split
            or config.chunk_size
            or (SMALL_BLOCK_PAIRS if config.save_memory_mode else DEFAULT_BLOCK_PAIRS)
        )

    @torch.no_grad()
    def __call__(self, model: XPool) -> Evaluation:
        """Encode, score all pairs, rank."""
        started = time.perf_counter()
        training = model.training
        model.eval()
        scores = self.similarity(model)
        model.train(training)
        results, references = evaluate_similarity(scores, self.split.clip_of_caption)
        evaluated = len(self.split.clips)
        annotated = evaluated + len(self.split.missing)
        return Evaluation(results, references, time.perf_counter() - started, evaluated, annotated)

    @torch.no_grad()
    def similarity(self, model: XPool) -> Similarity:
        """The score matrices of the split."""
        with autocast(self.device, self.dtype):
            videos = self.encode_videos(model)
            texts = self.encode_texts(model)
            logger.info("scoring %d texts x %d videos", len(texts), len(videos))
            with tqdm(total=len(texts) * len(videos), desc="similarity", unit="pair", leave=False, disable=None) as bar:
                return similarity(model, texts, videos, self.own_text, self.block_pairs, bar.update)

    def encode_videos(self, model: XPool) -> Videos:
        """All videos of the split, in its order."""
        features: list[Tensor] = []
        for frames, _ in tqdm(
            batches(self.loader), total=len(self.loader), desc="videos", unit="batch", leave=False, disable=None
        ):
            features.append(model.encode_videos(frames.to(self.device, non_blocking=True)))
        return model.videos(torch.cat(features))

    def encode_texts(self, model: XPool) -> Texts:
        """All captions of the split, in its order."""
        captions = self.split.captions
        tokens = model.tokenize(captions)
        ids = tokens.pop("token_ids").split(self.config.batch_size)
        features = torch.cat([model.encode_texts(part.to(self.device)) for part in ids])
        return model.texts(captions, features, **{name: rows.to(self.device) for name, rows in tokens.items()})


def evaluate_similarity(
    scores: Similarity, video_of_text: Sequence[int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Metrics of score matrices: rows for every metric, protocol and dsl; and those of the references."""
    results = [
        {"metric": metric, "protocol": protocol, "dsl": dsl} | METRICS[metric](matrix, video_of_text, dsl)
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


def format_table(evaluation: Evaluation, metric: str, dsl: bool) -> str:
    """A recall table for people: rows of one direction, with DSL rows if wanted.

    The last rows score the same checkpoint without its diffusion and with plain mean pooling.
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
    if evaluation.videos < evaluation.annotated:
        reduced = f"{evaluation.videos} of {evaluation.annotated} test videos: not comparable with the whole test set"
        return f"{table(lines)}\n{reduced}"
    return table(lines)


def table(lines: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Labelled rows of metrics as aligned text."""
    width = max(len(label) for label, _ in lines)
    head = " " * width + "".join(f"{'R@' + c[1:] if c[0] == 'R' else c:>8}" for c in COLUMNS) + "   queries x gallery"
    body = [
        f"{label:<{width}}" + "".join(f"{row[c]:8.1f}" for c in COLUMNS) + f"   {row['queries']} x {row['gallery']}"
        for label, row in lines
    ]
    return "\n".join([head, *body])


def write_results(path: Path, evaluation: Evaluation, config: Config, checkpoint: str | None) -> None:
    """Write results.json.

    :param checkpoint: file that was evaluated, None for an untrained model.
    """
    report = {
        "dataset": config.dataset_name,
        "checkpoint": checkpoint,
        "arch": config.arch,
        "recipe": config.recipe,
        "seconds": round(evaluation.seconds, 3),
        "test_videos": {"evaluated": evaluation.videos, "annotated": evaluation.annotated},
        "results": evaluation.results,
        "references": evaluation.references,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"results cannot be written to {path}: {error.strerror}") from error
