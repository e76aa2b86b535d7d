"""Seconds and memory of encoding with the shapes of several encoders, random weights: CLIP ViT-B/32 and B/16, SigLIP 2.

    python benchmarks/bench_encoders.py [--precision=bf16] [--threads=2]

Each encoder runs in a process of its own, so that its peak of memory is its own. The median of --repeats calls.
"""

import json
import logging
import statistics
import subprocess
import sys
import time

import torch
from transformers import CLIPConfig, SiglipConfig

from model.encoders import image_features, with_random_weights
from trainer.throughput import memory_gb
from utils.command_line import Parser, number
from utils.device import autocast, choose_device, choose_precision, precision_name
from utils.program import run_program

logger = logging.getLogger(__name__)

FRAMES, VIDEOS, TEXTS = 12, 4, 64
SHAPES = {
    "CLIP ViT-B/32": lambda: (CLIPConfig(), 32),
    "CLIP ViT-B/16": lambda: (CLIPConfig(vision_config={"patch_size": 16}), 32),
    "SigLIP 2 base": lambda: (SiglipConfig(text_config={"vocab_size": 256_000}), 64),  # all texts have 64 tokens
}


@torch.no_grad()
def measure(name: str, precision: str, repeats: int) -> dict[str, float]:
    """Seconds a video and a text, parameters in millions, and the peak of this process in GB."""
    config, tokens = SHAPES[name]()
    device = choose_device("cpu")
    model = with_random_weights(config).eval()
    pixels = torch.rand(VIDEOS * FRAMES, 3, config.vision_config.image_size, config.vision_config.image_size)
    ids = torch.randint(3, 1000, (TEXTS, tokens))
    seconds: dict[str, list[float]] = {"video": [], "text": []}
    for _ in range(repeats + 1):
        for what, count, call in (
            ("video", VIDEOS, lambda: image_features(model, pixels)),
            ("text", TEXTS, lambda: model.get_text_features(input_ids=ids)),
        ):
            started = time.perf_counter()
            with autocast(device, choose_precision(precision, device)):
                call()
            seconds[what].append((time.perf_counter() - started) / count)
    return {f"{what}_seconds": statistics.median(found[1:]) for what, found in seconds.items()} | {
        "parameters": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        "peak_gb": memory_gb(device),
    }


def main() -> None:
    parser = Parser("benchmarks/bench_encoders.py", __doc__.splitlines()[0], "python %(prog)s [--flag=VALUE]")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"), help="arithmetic")
    parser.add_argument("--threads", type=number(int, least=1), default=2, help="of each encoder")
    parser.add_argument("--repeats", type=number(int, least=1), default=5, help="calls, of which the median counts")
    parser.add_argument("--one", choices=tuple(SHAPES), help="measure it in this process, as JSON (default: all)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        logger.info(json.dumps(measure(args.one, args.precision, args.repeats)))
        return
    precision = precision_name(choose_precision(args.precision, choose_device("cpu")))
    logger.info("%s, %d threads, %d frames a video", precision, args.threads, FRAMES)
    logger.info("| | s a video | ms a text | parameters, M | peak, GB |\n| --- | --- | --- | --- | --- |")
    for name in SHAPES:
        command = [sys.executable, __file__, f"--one={name}", *sys.argv[1:]]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        logger.info(
            "| %s | %.2f | %.1f | %.0f | %.1f |", name, found["video_seconds"], 1000 * found["text_seconds"],
            found["parameters"], found["peak_gb"],
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_program("bench_encoders.py", main))
