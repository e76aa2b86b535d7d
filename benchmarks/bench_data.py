"""Videos per second that loading and encoding give, against the published way.

    python benchmarks/bench_data.py [--quick] [--parts loading,encoding] [--json FILE]

Three kinds of file are made with FFmpeg: a 3 fps copy of 15 s, 20 s of 320x240 at 25 fps, and 2 minutes of 640x360
with a key frame every 250 frames. The baseline seeks to each of 12 frames and transforms them as floats in the worker.
Every video is new to the loader (`cold`), or its frames are in the frame cache (`warm`). Both run by turns in one
process, where decoders may use all cores, so that what else the machine does meets both.

Encoding is that of ViT-B/32 with random weights. Its baseline decodes a file, processes and encodes its frames with
transformers in fp32, one video after the other; test.py and `search.py index` do so in the precision of this processor.
"""

import functools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from operator import truediv
from pathlib import Path
from statistics import median

import cv2
import imageio_ffmpeg
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, v2
from transformers import CLIPConfig, CLIPImageProcessor

from config import Config, SearchConfig
from datasets.annotations import Segment, Split
from datasets.frame_cache import CacheSettings
from datasets.loading import TestVideos, batches, test_loader
from datasets.transforms import OPENAI, PIXEL_MEAN, PIXEL_STD
from datasets.video import frame_indices, read_frames
from evaluation.evaluator import Evaluator
from model.pretrained import TINY_FOLDER, build_clip
from model.xpool import XPool
from utils.command_line import Parser, home_path
from utils.device import choose_precision
from utils.machine import cores
from utils.program import run_program
from video_index.encoding import Encoder, NewSegment
from video_index.store import Span

logger = logging.getLogger(__name__)

FRAMES, RESOLUTION = 12, 224
KINDS = {
    "3fps": {"seconds": 15, "rate": 3, "size": "398x224"},
    "20s": {"seconds": 20, "rate": 25, "size": "320x240"},
    "2min": {"seconds": 120, "rate": 25, "size": "640x360"},
}
ASKED = {"3fps": 5.0, "20s": 2.0, "2min": 0.87, "warm": 20.0}
FLOAT_TRANSFORM = v2.Compose(
    [
        v2.Resize(RESOLUTION, interpolation=InterpolationMode.BICUBIC, antialias=True),
        v2.CenterCrop(RESOLUTION),
        v2.Normalize(PIXEL_MEAN, PIXEL_STD),
    ]
)


def baseline(path: Path) -> Tensor:
    """The published way: a seek to each frame, then floats. Returns (F, 3, R, R)."""
    return FLOAT_TRANSFORM(torch.from_numpy(seek_each(path)).permute(0, 3, 1, 2).float() / 255)


def seek_each(path: Path) -> np.ndarray:
    """The frames (F, H, W, 3) by a seek to each."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    for index in frame_indices(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), FRAMES):
        capture.set(cv2.CAP_PROP_POS_FRAMES, int(index))
        frames.append(cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB))
    capture.release()
    return np.stack(frames)


def straight(path: Path) -> np.ndarray:
    """The frames (F, H, W, 3) by decoding everything."""
    capture = cv2.VideoCapture(str(path))
    wanted = set(frame_indices(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), FRAMES).tolist())
    frames, position = [], 0
    while capture.grab():
        if position in wanted:
            frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
        position += 1
    capture.release()
    return np.stack(frames)


def make_videos(folder: Path, copies: int) -> dict[str, list[Path]]:
    """Films with noise, so that decoding costs what it does for real ones; copies are links under other names."""
    videos = {}
    for kind, facts in KINDS.items():
        first = folder / f"{kind}.mp4"
        source = "testsrc2=size={size}:rate={rate}:duration={seconds},noise=alls=8:allf=t".format(**facts)
        encoding = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "28", "-pix_fmt", "yuv420p"]
        keys = ["-g", "250", "-keyint_min", "250", "-sc_threshold", "0"]
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi", "-i", source, *encoding, *keys]
        subprocess.run([*command, str(first)], check=True)
        videos[kind] = [folder / f"{kind}-{i}.mp4" for i in range(copies)]
        for path in videos[kind]:
            os.link(first, path)
    return videos


def by_turns(paths: list[Path], *functions: Callable[[Path], object]) -> list[float]:
    """Seconds per video of each function, the median over the videos."""
    seconds = np.empty((len(functions), len(paths)))
    for column, path in enumerate(paths):
        for row, function in enumerate(functions):
            started = time.perf_counter()
            function(path)
            seconds[row, column] = time.perf_counter() - started
    return np.median(seconds, axis=1).tolist()


def dataset(paths: list[Path], cache: CacheSettings | None = None) -> TestVideos:
    """The real thing."""
    segments = tuple(Segment(path.stem, path, ("a caption",)) for path in paths)
    return TestVideos(Split("bench", "test", segments), FRAMES, RESOLUTION, cache)


def videos_per_second(paths: list[Path], cache: CacheSettings | None, workers: int) -> float:
    """Of a loader whose workers have started: the second of two passes."""
    loader = test_loader(dataset(paths, cache), 2, workers, pin_memory=False)
    for _ in range(2):
        started = time.perf_counter()
        list(batches(loader))
    return len(paths) / (time.perf_counter() - started)


def measure(folder: Path, copies: int) -> dict[str, dict[str, float]]:
    """All figures, by name: seconds per video, and ratios to the baseline."""
    videos = make_videos(folder, copies)
    cache = CacheSettings(folder / "cache")
    seconds, ratios, warm = {}, {}, []
    for kind, paths in videos.items():
        cold, cached = dataset(paths), dataset(paths, cache)
        number = {path: index for index, path in enumerate(paths)}
        base, ours = by_turns(paths, baseline, lambda path, d=cold, n=number: d[n[path]])
        fresh = [path.with_name(f"again-{path.name}") for path in paths]
        for path, link in zip(paths, fresh, strict=True):
            os.link(path, link)
        by_seek, by_straight, by_plan = by_turns(fresh, seek_each, straight, lambda path: read_frames(path, FRAMES))
        for index in range(len(paths)):
            cached[index]
        (from_cache,) = by_turns(paths * 3, lambda path, d=cached, n=number: d[n[path]])
        seconds |= {
            f"{kind}_baseline": base, f"{kind}_cold": ours, f"{kind}_warm": from_cache,
            f"{kind}_decode_seek": by_seek, f"{kind}_decode_straight": by_straight, f"{kind}_decode": by_plan,
        }  # fmt: skip
        ratios[kind] = base / ours
        ratios[f"{kind}_decode_to_better"] = by_plan / min(by_seek, by_straight)
        warm.append(base / from_cache)
        ratios[f"{kind}_warm"] = warm[-1]
    ratios["warm"] = min(warm)
    every = [path for paths in videos.values() for path in paths]
    for name, settings, repeat in (("cold", None, 1), ("warm", cache, 8)):
        one, two = (videos_per_second(every * repeat, settings, workers) for workers in (1, 2))
        seconds |= {f"{name}_1_worker": 1 / one, f"{name}_2_workers": 1 / two}
        ratios[f"{name}_2_workers_to_1"] = two / one
    return {"seconds": seconds, "ratios": ratios}


def loading(folder: Path, quick: bool) -> dict[str, dict[str, float]]:
    """Figures of decoding and of the frame cache."""
    torch.set_num_threads(1)  # as in a worker
    figures = measure(folder, 2 if quick else 7)
    seconds, ratios = figures["seconds"], figures["ratios"]
    columns = ("baseline", "cold", "warm", "decode_seek", "decode_straight", "decode")
    logger.info("ms a video " + "".join(f"{column:>17}" for column in columns))
    for kind in KINDS:
        logger.info(f"{kind:<11}" + "".join(f"{1000 * seconds[f'{kind}_{column}']:17.1f}" for column in columns))
    for name, value in ratios.items():
        logger.info(f"{name:<24}{value:8.2f}" + (f"   asked: {ASKED[name]:g}" if name in ASKED else ""))
    return figures


@torch.no_grad()
def plain_encoding(model: XPool, processor: CLIPImageProcessor, paths: list[Path]) -> Tensor:
    """Decode, process, encode, one video after the other: (videos, F, D)."""
    features = []
    for path in paths:
        pixels = processor(list(straight(path)), return_tensors="pt")["pixel_values"]
        features.append(model.clip.get_image_features(pixel_values=pixels).pooler_output)
    return torch.stack(features)


def test_encoding(model: XPool, paths: list[Path], dtype: torch.dtype) -> Tensor:
    """What test.py does of videos (videos, F, D)."""
    segments = tuple(Segment(path.stem, path, ("a caption",)) for path in paths)
    config = Config(arch="clip_transformer", num_frames=FRAMES, input_res=RESOLUTION)
    split = Split("bench", "test", segments)
    return Evaluator(split, config, torch.device("cpu"), dtype, OPENAI).encode(model).videos.frames


def index_encoding(model: XPool, paths: list[Path], dtype: torch.dtype) -> Tensor:
    """What `search.py index` does of videos (videos, F, D), without the index."""
    config = SearchConfig(arch="clip_transformer", num_frames=FRAMES, input_res=RESOLUTION)
    segments = [NewSegment(str(path), Span(0, 1, None, None)) for path in paths]
    found = dict(Encoder(model, config, torch.device("cpu"), dtype)(segments))
    return torch.cat([found[segment].frames for segment in segments])


def encoding(folder: Path, quick: bool) -> dict[str, dict[str, float]]:
    """Seconds a video and the medians of ratios to the baseline, by turns; the least cosine of a frame's features with
    the baseline's."""
    videos = make_videos(folder, 2 if quick else 64)  # several batches for each thread
    torch.manual_seed(0)
    model = XPool(*build_clip(CLIPConfig().to_dict(), TINY_FOLDER)).eval()
    dtype = choose_precision("auto", torch.device("cpu"))
    ways = {
        "plain": functools.partial(plain_encoding, model, CLIPImageProcessor()),
        "test": functools.partial(test_encoding, model, dtype=dtype),
        "index": functools.partial(index_encoding, model, dtype=dtype),
    }
    torch.set_num_threads(cores())
    figures: dict[str, dict[str, float]] = {"seconds": {}, "ratios": {}, "cosines": {}}
    for kind in ("3fps", "20s"):
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        found = {}
        for _ in range(1 if quick else 3):
            for name, way in ways.items():
                started = time.perf_counter()
                found[name] = way(paths=videos[kind])
                seconds[name].append((time.perf_counter() - started) / len(videos[kind]))
        for name, spent in seconds.items():
            figures["seconds"][f"{kind}_{name}"] = median(spent)
            figures["ratios"][f"{kind}_{name}"] = median(map(truediv, seconds["plain"], spent))
            cosines = F.cosine_similarity(found[name], found["plain"], dim=-1)
            figures["cosines"][f"{kind}_{name}"] = float(cosines.min())
    for name in figures["seconds"]:
        logger.info(
            f"{name:<14}{1 / figures['seconds'][name]:8.2f} videos/s{figures['ratios'][name]:8.2f} x  least cosine "
            f"{figures['cosines'][name]:.5f}"
        )
    return figures


def main() -> None:
    parser = Parser("benchmarks/bench_data.py", __doc__.splitlines()[0])
    parser.add_argument("--json", type=home_path, help="file for the figures (default: none)")
    parser.add_argument("--quick", action="store_true", help="2 videos of each kind instead of 7")
    parser.add_argument("--parts", default="loading,encoding", help="which parts to run, with a comma between")
    args = parser.parse_args()
    figures = {}
    for part, run in (("loading", loading), ("encoding", encoding)):
        if part in args.parts.split(","):
            with tempfile.TemporaryDirectory() as folder:
                figures[part] = run(Path(folder), args.quick)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_program("bench_data.py", main))
