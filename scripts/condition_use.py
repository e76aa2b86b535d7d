"""Does the text diffusion read the video? Recall when it is told of another one, or of the frames in another order.

python scripts/condition_use.py --load_epoch=0 --datetime=RUN [flags of test.py]

Candidates and pooled frames are those of the right video in its own order throughout, so that a difference is what the
diffusion made of its condition. The table holds strict R@1 with each condition, and what is lost against the own one,
with the 95 % interval of the paired bootstrap over queries. The same goes to --output_json, or to condition_use.json
beside the checkpoint.
"""

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from config import Config
from config.model_flags import DIFFUSION_ARCHS
from evaluation.evaluator import Evaluator
from model.clip import EncodedVideos
from model.retrieval import RetrievalModel
from modules.bootstrap import RESAMPLES, paired_difference
from modules.metrics import RANKS
from utils.errors import InputError
from utils.files import check_writable, written_or_refused
from utils.program import run_program
from utils.tables import aligned

logger = logging.getLogger(__name__)

OUTPUT = "condition_use.json"
OWN, BASE = "own condition", "base alone"


def main() -> None:
    # 1. settings
    config = Config.parse(program="test", prog="scripts/condition_use.py", description=__doc__.splitlines()[0])
    from datasets.annotations import load_split
    from trainer.checkpoints import chosen_model
    from utils.device import choose_device, choose_precision, set_up
    from utils.distributed import find_processes

    device = choose_device(config.gpu, find_processes())
    set_up(device, config.seed)

    # 2. model and data
    path, model, *_ = chosen_model(config)
    config = config.of_model(model.model_config)
    if config.arch not in DIFFUSION_ARCHS:
        raise InputError(f"--arch={config.arch} has no diffusion, whose condition could be exchanged")
    output = Path(config.output_json or (path.parent if path else config.named().run_dir) / OUTPUT)
    check_writable(output)
    model.to(device).eval()
    places = (config.dataset_dir, config.videos_dir, config.msrvtt_train_file, config.allow_missing)
    split = load_split(config.dataset_name, config.test_split, *places)
    evaluator = Evaluator(split, config, device, choose_precision(config.precision, device), model.preprocessing)

    # 3. recall with each condition
    rows = condition_use(evaluator, model, config.rerank_topk, config.seed)
    logger.info(format_rows(rows))
    report = {
        "dataset": config.dataset_name,
        "split": split.name,
        "checkpoint": path and str(path),
        "arch": config.arch,
        "recipe": config.recipe,
        "rerank_topk": config.rerank_topk,
        "seed": config.seed,
        "resamples": RESAMPLES,
        "results": rows,
    }
    with written_or_refused(output, f"{output} cannot be written") as unfinished:
        unfinished.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def condition_use(evaluator: Evaluator, model: RetrievalModel, rerank_topk: int, seed: int) -> list[dict[str, Any]]:
    """Strict R@1 in percent of both directions with each condition, and of the base, the original text embedding.

    :param seed: of what is shuffled, and of the bootstrap.
    :return: rows with metric, condition, R1, queries, and `lost`, `low`, `high`: R@1 with the own condition minus this.
    """
    orders = frame_orders(len(evaluator.split.segments), evaluator.config.num_frames, seed)
    embeddings, *others = evaluator.encode_orders(model, [None, *orders.values()])
    own = embeddings.videos
    order = other_videos(len(own.frames), seed)
    tokens = None if own.tokens is None else own.tokens[order]
    conditions = {OWN: own, "shuffled videos": EncodedVideos(own.frames[order.to(own.frames.device)], tokens)}
    conditions |= {name: other.videos for name, other in zip(orders, others, strict=True)}
    owner, found = evaluator.split.segment_of_caption, {}
    for name, condition in conditions.items():
        scores = evaluator.similarity(model, embeddings, rerank_topk, None, condition)
        for metric, ranks in RANKS.items():
            found[metric, name] = ranks(scores.strict, owner, first=scores.first) == 1
    for metric, ranks in RANKS.items():
        found[metric, BASE] = ranks(scores.undiffused, owner) == 1
    return [
        _row(metric, name, found[metric, OWN], found[metric, name], seed)
        for metric in RANKS
        for name in (*conditions, BASE)
    ]


def _row(metric: str, name: str, own: np.ndarray, found: np.ndarray, seed: int) -> dict[str, Any]:
    lost, low, high = (100 * value for value in paired_difference(own, found, seed))
    return {
        "metric": metric,
        "condition": name,
        "R1": 100.0 * int(found.sum()) / len(found),
        "queries": len(found),
        "lost": lost,
        "low": low,
        "high": high,
    }


def frame_orders(videos: int, frames: int, seed: int) -> dict[str, Tensor]:
    """Orders of the frames of M videos (M, F): shuffled, each video in its own way, and backwards."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "shuffled frames": torch.rand(videos, frames, generator=generator).argsort(1),
        "reversed frames": torch.arange(frames).flip(0).expand(videos, frames),
    }


def other_videos(videos: int, seed: int) -> Tensor:
    """For each of M videos another one (M,), each once: the next one of a shuffled circle."""
    circle = torch.randperm(videos, generator=torch.Generator().manual_seed(seed))
    return torch.empty_like(circle).index_copy_(0, circle, circle.roll(1))


def format_rows(rows: list[dict[str, Any]]) -> str:
    """The table for people."""
    return aligned(
        [(f"{row['metric']} {row['condition']}", row) for row in rows],
        {"R1": "R@1", "lost": "lost"},
        "   95 % interval   queries",
        lambda row: f"{interval(row):>16}{row['queries']:10}",
        title="strict, in %",
    )


def interval(row: Mapping[str, Any]) -> str:
    """That of what is lost."""
    return f"[{row['low']:.1f}, {row['high']:.1f}]"


if __name__ == "__main__":
    sys.exit(run_program("condition_use.py", main))
