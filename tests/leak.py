"""The leak of the published protocol, measured for every arch: `python -m tests.leak`.

200 texts and 200 videos of random features that have nothing to do with each other, one caption a video, and weights
that were never trained. What a protocol finds above chance it was told. docs/PROTOCOL.md explains it.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from model.clip import EncodedVideos
from model.retrieval import RetrievalModel
from modules.metrics import text_to_video, video_to_text
from modules.similarity import similarity
from tests.small_models import small_baseline, small_textdiffs, small_tmass, small_xpool

logger = logging.getLogger(__name__)

PAIRS, WIDTH, FRAMES = 200, 512, 12
CAPTIONS = [f"word{i % 14} word{14 + i // 14}" for i in range(PAIRS)]
COLUMNS = tuple((protocol, metric) for protocol in ("strict", "published") for metric in ("t2v", "v2t"))

# name -> an untrained model. TextDiffs has few steps and words, for speed: neither
# has a part in the leak
MODELS: dict[str, Callable[[], RetrievalModel]] = {
    "clip_baseline, avg": lambda: small_baseline("avg", WIDTH),
    "clip_baseline, topk (k = 3)": lambda: small_baseline("topk", WIDTH, k=3),
    "clip_baseline, attention": lambda: small_baseline("attention", WIDTH, temperature=0.01),
    "clip_transformer (X-Pool)": lambda: small_xpool(WIDTH),
    "clip_tmass (T-MASS)": lambda: small_tmass(WIDTH, FRAMES),
    "clip_stochastic (TextDiffs)": lambda: small_textdiffs(CAPTIONS, WIDTH, num_frames=FRAMES, length=4, scaled=False),
    "clip_stochastic, --recipe=published": lambda: small_textdiffs(
        CAPTIONS, WIDTH, num_frames=FRAMES, steps=2, length=4, published=True
    ),
}


@torch.no_grad()
def recall_of_unrelated_pairs(model: RetrievalModel, seed: int, pairs: int = PAIRS) -> dict[tuple[str, str], float]:
    """R@1 in percent for every one of COLUMNS. Chance is 100 / `pairs`."""
    generator, captions = torch.Generator().manual_seed(seed), CAPTIONS[:pairs]
    texts = torch.randn(pairs, WIDTH, generator=generator)
    frames = torch.randn(pairs, FRAMES, WIDTH, generator=generator)
    tokens = model.token_shape and torch.randn(pairs, *model.token_shape, generator=generator)
    read, videos = model.texts(captions, texts, model.tokenize(captions)), model.videos(EncodedVideos(frames, tokens))
    scores = similarity(model, read, videos, torch.arange(pairs))
    metrics = {"t2v": text_to_video, "v2t": video_to_text}
    return {
        (protocol, name): metrics[name](getattr(scores, protocol), range(pairs))["R1"] for protocol, name in COLUMNS
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.leak", description=__doc__)
    parser.add_argument("--seeds", type=int, default=4, help="random features to draw (default: 4)")
    parser.add_argument("--json", type=Path, help="file for all values")
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    logger.info("| arch | %s |", " | ".join(" ".join(column) for column in COLUMNS))
    logger.info("|%s", " --- |" * (1 + len(COLUMNS)))
    values = {}
    for name, build in MODELS.items():
        torch.manual_seed(0)
        model = build()
        found = [recall_of_unrelated_pairs(model, seed) for seed in range(options.seeds)]
        values[name] = {" ".join(column): [recall[column] for recall in found] for column in COLUMNS}
        cells = [f"{min(column):.1f} to {max(column):.1f}" for column in values[name].values()]
        logger.info("| %s | %s |", name, " | ".join(cells))
    if options.json:
        options.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
