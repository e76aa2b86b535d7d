"""What this project does on a CUDA device: conformance with the CPU, pairs/s, share of the matrix rate, hidden waits.

    benchmarks/gpu.sh [--quick] [--output=FILE] [--sections=machine,training] [--section_seconds=S]

Weights are random, of the shape of ViT-B/32 and the base denoiser, 12 frames of 49 patches (--quick: tiny ones). A
measurement that fails is told in one line, its traceback goes beside the output, and the others still run. The output
is written again after each of them.
"""

import copy
import functools
import gc
import json
import logging
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig

from benchmarks.bench_similarity import (
    FRAMES,
    LENGTH,
    STEPS,
    WORDS,
    attention,
    build,
    build_potential,
    engine,
    known_words,
    problem,
    published_loop,
)
from benchmarks.bench_train import flops_per_pair
from config import Config
from datasets.annotations import Segment, Split
from datasets.holdout import Selection, TrainingSplits
from diffusion_lm.denoiser import DENOISERS, Denoiser
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from model.clip import EncodedVideos
from model.factory import video_encoder
from model.pretrained import TINY_FOLDER, build_clip
from model.published_textdiffs import PublishedTextDiffs
from model.retrieval import RetrievalModel
from model.textdiffs import TextDiffs
from model.xpool import XPool
from modules.similarity import automatic_block
from modules.text_diffusion import TextDiffusion
from modules.text_potential import TextPotential
from trainer.run_folder import MetricsWriter
from trainer.trainer import Trainer
from trainer.training_step import TrainingStep
from utils.command_line import Parser, home_path, number
from utils.device import autocast, choose_device, precision_name, set_up
from utils.errors import InputError, RunError
from utils.program import run_program

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ("textdiffs", "published")
MODELS = {"X-Pool": "clip_transformer", "textdiffs": "clip_stochastic", "published": "clip_stochastic"}
TOLERANCE = 1e-4  # absolute and relative, as in tests/method/test_conformance.py
VOCABULARY = 5000  # words, about those of MSR-VTT
TINY, REAL = ("tiny", 8, 20), ("base", LENGTH, VOCABULARY)  # denoiser, tokens, words
CAPTIONS_OF_VIDEO, CAPTION_WORDS = 5, 10
KERNELS = 8  # that take most of the time, in the output


class OutOfTime(BaseException):
    """A section has had its time. Not an Exception, which compilers catch and tell as their own."""


@dataclass
class Bench:
    """Where measurements run and what they have found, which is told and written as it comes."""

    device: torch.device
    quick: bool
    output: Path
    found: dict = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)  # FLOP/s of a large product, by precision
    failed: int = 0
    deadline: float = float("inf")

    @property
    def errors(self) -> Path:
        """File of the tracebacks."""
        return self.output.with_suffix(".errors.txt")

    def measure(self, section: str, name: str, function: Callable[..., dict], *arguments: object) -> None:
        """Run a measurement, tell what it found or what went wrong, and free its memory."""
        if time.monotonic() > self.deadline:
            raise OutOfTime
        try:
            self.tell(section, name, function(self, *arguments))
        except Exception as error:
            self.failed += 1
            with self.errors.open("a", encoding="utf-8") as file:
                file.write(f"{section}, {name}\n{traceback.format_exc()}\n")
            self.tell(section, name, {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"})
        self.free()

    def free(self) -> None:
        """Give back the memory of what is no longer used."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def tell(self, section: str, name: str, figures: dict) -> None:
        """A row of the table, and the whole output."""
        self.found.setdefault(section, {})[name] = figures
        shown = ", ".join(f"{key} {_short(value)}" for key, value in figures.items() if not isinstance(value, dict))
        sys.stdout.write(f"{section:<12}{name:<28}{shown}\n")
        sys.stdout.flush()
        self.output.write_text(json.dumps(self.found, indent=2) + "\n", encoding="utf-8")

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def share(self, flops_per_second: float, precision: str) -> float | None:
        """Of the rate of a large product, where it was measured."""
        return flops_per_second / self.rates[precision] if precision in self.rates else None


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def at_most(bench: Bench, seconds: float) -> Iterator[None]:
    """:raises OutOfTime: within it, after so many seconds."""

    def stop(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    bench.deadline = time.monotonic() + seconds
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """float32 products with the mantissa of TF32, which this project does not let them have."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False


# machine


def machine(bench: Bench) -> None:
    """Rate of a large product in each precision."""
    for precision, dtype in (("bf16", torch.bfloat16), ("TF32", torch.float32), ("fp32", torch.float32)):
        if precision != "TF32" or bench.device.type == "cuda":
            bench.measure("machine", f"product, {precision}", product, precision, dtype)


def product(bench: Bench, precision: str, dtype: torch.dtype) -> dict:
    """FLOP/s of square matrices."""
    size, repeats = (256, 3) if bench.quick else (8192, 20)
    a, b = (torch.randn(size, size, device=bench.device).to(dtype) for _ in range(2))
    with tf32(precision == "TF32"):
        for count in (3, repeats):
            bench.wait()
            started = time.perf_counter()
            for _ in range(count):
                a @ b
            bench.wait()
            seconds = (time.perf_counter() - started) / count
    bench.rates[precision] = 2 * size**3 / seconds
    return {"size": size, "tflops": bench.rates[precision] / 1e12}


@functools.lru_cache
def _scorer(recipe: str, denoiser: str, length: int, words: int) -> PublishedTextDiffs | TextDiffs:
    if recipe == "published":
        return build(denoiser, length, STEPS, words=words)
    return build_potential(denoiser, length, words)


def scorer(*sizes: object) -> PublishedTextDiffs | TextDiffs:
    """TextDiffs of a recipe for features of ViT-B/32, with random weights, on the CPU; a copy, as making it is slow."""
    return copy.deepcopy(_scorer(*sizes))


# conformance


def conformance(bench: Bench) -> None:
    """The same weights, inputs and noise on the device and on the CPU."""
    for recipe in RECIPES:
        bench.measure("conformance", recipe, against_cpu, recipe)


def against_cpu(bench: Bench, recipe: str) -> dict:
    """Largest errors, absolute or relative, whichever is smaller, against the CPU in fp32.

    :raises RunError: one in fp32 is too large.
    """
    count = 3 if bench.quick else 8
    model = scorer(recipe, *(TINY if bench.quick else ("small", 16, 100)))
    expected = everything(model, count, torch.device("cpu"), torch.float32)
    model.to(bench.device)
    ways = {"fp32": (torch.float32, False), "TF32": (torch.float32, True), "bf16": (torch.bfloat16, False)}
    if bench.device.type != "cuda":
        del ways["TF32"]
    errors = {}
    for precision, (dtype, allowed) in ways.items():
        with tf32(allowed):
            found = everything(model, count, bench.device, dtype)
        errors[precision] = {
            name: float(((found[name] - exact).abs() / (1 + exact.abs())).max()) for name, exact in expected.items()
        }
    worst = {precision: max(by_name.values()) for precision, by_name in errors.items()}
    bench.found.setdefault("conformance", {})[f"{recipe}, errors"] = errors
    if not worst["fp32"] <= TOLERANCE:
        name = max(errors["fp32"], key=errors["fp32"].get)
        raise RunError(f"{name} differs by {worst['fp32']:.2g} in fp32, more than {TOLERANCE}; errors {worst}")
    return {f"error {precision}": value for precision, value in worst.items()}


def everything(
    model: PublishedTextDiffs | TextDiffs, count: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Score matrices of some texts and as many videos, the losses of a training step without dropout, and the norm of
    their gradients; on the CPU."""
    captions, texts, frames = problem(count, count)
    generator = torch.Generator().manual_seed(2)
    tokens = None if model.token_shape is None else torch.randn(count, *model.token_shape, generator=generator)
    scores = engine(model, captions, texts, frames, dtype, tokens=tokens)
    found = {name: torch.from_numpy(getattr(scores, name)) for name in ("strict", "published", "undiffused")}
    side = model.clip.config.vision_config.image_size
    pictures = torch.randint(256, (count, FRAMES, 3, side, side), dtype=torch.uint8, generator=generator)
    index = torch.arange(count)
    if model.captions_read > 1:
        index = torch.stack([index, (index + 1) % count, index.new_full((count,), -1)], dim=1)
    chosen = model.select(model.tokenize(captions), index)
    losses = TrainingStep(model, 1, device, dtype)(pictures, chosen, model.draw_noise(0, range(count)))
    model.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    scalars = {f"loss, {name}": value for name, value in losses.items()} | {"gradient norm": norm}
    return found | {name: value.detach().float().cpu() for name, value in scalars.items()}


# scoring


def scoring(bench: Bench) -> None:
    """Pairs/s of both recipes, and of the published loop."""
    for recipe in RECIPES:
        bench.measure("scoring", f"{recipe}, bf16", score, recipe, torch.bfloat16)
    bench.measure("scoring", "published loop, fp32", loop)
    for recipe in RECIPES:
        bench.measure("scoring", f"{recipe}, fp32", score, recipe, torch.float32)


def score(bench: Bench, recipe: str, dtype: torch.dtype) -> dict:
    """About one block of pairs of the automatic size, each text with the same videos."""
    model = scorer(recipe, *(TINY if bench.quick else REAL)).to(bench.device)
    videos = 4 if bench.quick else 256
    block = automatic_block(model.pair_bytes, bench.device, 2**20)
    texts = 4 if bench.quick else max(1, block // videos)
    tokens = None if model.token_shape is None else torch.randn(videos, *model.token_shape)

    def run(count: int) -> None:
        engine(model, *problem(count, videos), dtype=dtype, tokens=tokens)

    flops = score_flops(model, dtype, tokens)
    run(max(1, texts // 4))
    bench.wait()
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    run(texts)
    rate = texts * videos / (time.perf_counter() - started)
    return {
        "pairs": texts * videos,
        "block": block,
        "pairs/s": rate,
        "gflop/pair": flops / 1e9,
        "share": bench.share(rate * flops, precision_name(dtype)),
        "peak_gb": peak_gb(bench),
    }


@torch.no_grad()
def score_flops(model: PublishedTextDiffs | TextDiffs, dtype: torch.dtype, tokens: Tensor | None) -> float:
    """FLOPs of the products of a pair, behind the encoders."""
    captions, texts, frames = problem(1, 4)
    device = next(model.parameters()).device
    word_ids = model.tokenize(captions)["word_ids"].to(device)
    zeros, index = torch.zeros(4, dtype=torch.long), torch.arange(4)
    with autocast(device, dtype):
        read = model.texts(captions, texts.to(device), {"word_ids": word_ids})
        seen = model.videos(EncodedVideos(frames.to(device), None if tokens is None else tokens[:4]))
        with FlopCounterMode(display=False) as counter:
            model.score_pairs(read, seen, zeros, index)
    return counter.get_total_flops() / 4


def loop(bench: Bench) -> dict:
    """The published loop, one video at a time with all texts."""
    texts, videos = (4, 1) if bench.quick else (256, 4)
    model = scorer("published", *(TINY if bench.quick else REAL)).to(bench.device)
    with attention(model, "eager"):
        published_loop(model, *problem(texts, 1))
        bench.wait()
        started = time.perf_counter()
        published_loop(model, *problem(texts, videos))
        bench.wait()
    rate = texts * videos / (time.perf_counter() - started)
    flops = score_flops(model, torch.float32, None)
    return {"pairs": texts * videos, "pairs/s": rate, "share": bench.share(rate * flops, "fp32")}


# training


@functools.lru_cache
def retrieval_model(name: str, quick: bool) -> RetrievalModel:
    """X-Pool, or TextDiffs of a recipe, with random weights, on the CPU; to be copied, as making it is slow."""
    torch.manual_seed(0)
    clip_config = CLIPConfig.from_pretrained(TINY_FOLDER) if quick else CLIPConfig()  # the default is ViT-B/32
    clip = build_clip(clip_config.to_dict(), TINY_FOLDER)
    if name == "X-Pool":
        return XPool(*clip)
    denoiser, length, words = TINY if quick else REAL
    sizes, vocabulary, process = DENOISERS[denoiser], known_words(words), GaussianDiffusion.sqrt(STEPS)
    if name == "published":
        student, teacher = (Denoiser(sizes, len(vocabulary), FRAMES) for _ in range(2))
        width = clip[0].config.projection_dim
        return PublishedTextDiffs(*clip, TextDiffusion(student, teacher, process, width, length), vocabulary)
    encoder = video_encoder(clip[0], FRAMES)
    student = Denoiser(replace(sizes, dropout=0.0), len(vocabulary), video_width=encoder.width)
    table = student.word_embedding.weight.detach().clone()
    return TextDiffs(*clip, TextPotential(student, table, encoder, process, length), vocabulary)


class Steps:
    """Steps of the real trainer on one batch of random frames, which lies where its loader leaves batches."""

    def __init__(self, bench: Bench, name: str, batch: int, folder: Path, compiled: bool = False) -> None:
        dtype = torch.float32 if bench.device.type == "cpu" else torch.bfloat16
        model = copy.deepcopy(retrieval_model(name, bench.quick)).to(bench.device)
        side = model.clip.config.vision_config.image_size
        generator = torch.Generator().manual_seed(1)
        words = torch.randint(len(WORDS), (batch, CAPTIONS_OF_VIDEO, CAPTION_WORDS), generator=generator).tolist()
        segments = []
        for video, captions in enumerate(words):
            path = folder / f"{video}.mp4"
            path.touch()  # nobody reads it
            texts = tuple(" ".join(WORDS[i] for i in caption) for caption in captions)
            segments.append(Segment(str(video), path, texts))
        recipe = {} if name == "X-Pool" else {"recipe": name}
        config = Config(
            arch=MODELS[name], batch_size=batch, num_frames=FRAMES, input_res=side, num_workers=0, compile=compiled,
            **recipe,
        )  # fmt: skip
        splits = TrainingSplits(Split("custom", "train", tuple(segments)), None, None, Selection(None, "by nothing"))
        self.trainer = Trainer(model, config, splits, bench.device, dtype, folder, MetricsWriter(folder, None))
        self.trainer.profile = None
        self.dtype, self.warm_up = dtype, 1 if bench.quick else 3
        self.frames = torch.randint(256, (batch, FRAMES, 3, side, side), dtype=torch.uint8, generator=generator)
        if bench.device.type == "cuda":
            self.frames = self.frames.pin_memory()
        self.index = torch.arange(batch) * CAPTIONS_OF_VIDEO

    def __call__(self, count: int) -> None:
        """Do so many steps."""
        for _ in range(count):
            self.trainer._train_step(self.frames, self.index)

    def flops_per_pair(self, device: torch.device) -> int:
        """FLOPs of the products of a pair, forward and backward."""
        model = self.trainer.model
        count = 1 + model.negatives
        tokens = self.trainer.captions.take(self.index[:count], 0, range(count))
        return flops_per_pair(model, self.frames[:count], tokens, device, self.dtype)


def training(bench: Bench) -> None:
    """Pairs/s of training steps."""
    for batch in (2,) if bench.quick else (32, 128):
        for name in MODELS:
            bench.measure("training", f"{name}, batch {batch}", train, name, batch, False)


def compiled(bench: Bench) -> None:
    """The same with --compile."""
    if bench.device.type != "cuda":
        bench.tell("compiled", "all", {"skipped": "no CUDA device"})
        return
    for batch in (2,) if bench.quick else (128, 32):
        for name in ("textdiffs", "X-Pool", "published"):
            torch.compiler.reset()
            bench.measure("compiled", f"{name}, batch {batch}", train, name, batch, True)


def train(bench: Bench, name: str, batch: int, compiled: bool) -> dict:
    """Steps of the trainer, timed after a warm-up."""
    count = 1 if bench.quick else 10
    with TemporaryDirectory() as folder:
        steps = Steps(bench, name, batch, Path(folder), compiled)
        flops = bench.found.get("training", {}).get(f"{name}, batch {batch}", {}).get("gflop/pair", 0) * 1e9
        if not compiled:
            flops = steps.flops_per_pair(bench.device)
        started = time.perf_counter()
        steps(steps.warm_up)
        bench.wait()
        warm_up = time.perf_counter() - started
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        steps(count)
        issued = time.perf_counter() - started
        bench.wait()
        seconds = (time.perf_counter() - started) / count
        steps.trainer._read_recent()  # refuses losses that are not finite
        return {
            "pairs/s": batch / seconds,
            "ms/step": 1000 * seconds,
            "ms to issue it": 1000 * issued / count,
            "gflop/pair": flops / 1e9,
            "share": bench.share(batch / seconds * flops, precision_name(steps.dtype)),
            "peak_gb": peak_gb(bench),
            "warm_up_s": warm_up,
        }


def kernels(bench: Bench) -> None:
    """What a training step spends its time in."""
    for name in MODELS:
        batch = 2 if bench.quick else 128
        bench.measure("kernels", f"{name}, batch {batch}", profiled, name, batch)


def profiled(bench: Bench, name: str, batch: int) -> dict:
    """Milliseconds of a step by the kernels that take most of them; on a CPU, by its operations."""
    kind = torch.profiler.ProfilerActivity
    with TemporaryDirectory() as folder:
        steps = Steps(bench, name, batch, Path(folder))
        steps(steps.warm_up)
        bench.wait()
        with torch.profiler.profile(activities=[kind.CUDA if bench.device.type == "cuda" else kind.CPU]) as profile:
            steps(1)
            bench.wait()
    part = "self_device_time_total" if bench.device.type == "cuda" else "self_cpu_time_total"
    spent = {row.key: getattr(row, part) / 1000 for row in profile.key_averages()}
    most = sorted(spent, key=spent.get, reverse=True)[:KERNELS]
    return {"all ms": sum(spent.values()), "most": {key[:120]: spent[key] for key in most}}


def peak_gb(bench: Bench) -> float | None:
    """The most memory of the device that was taken since the last reset."""
    return torch.cuda.max_memory_allocated(bench.device) / 1e9 if bench.device.type == "cuda" else None


# hidden waits


def waits(bench: Bench) -> None:
    """Whether a training step waits for the device."""
    if bench.device.type != "cuda":
        bench.tell("waits", "all", {"skipped": "no CUDA device"})
        return
    bench.measure("waits", "a wait that is there", planted)
    for name in ("textdiffs", "published", "X-Pool"):
        bench.measure("waits", name, ten_steps, name)


def planted(bench: Bench) -> dict:
    """:raises RunError: a wait is not noticed."""
    number = torch.ones((), device=bench.device)
    with noticed() as found:
        float(number)
    if not found:
        raise RunError("a wait was not noticed")
    return {"found at": ", ".join(found)}


def ten_steps(bench: Bench, name: str) -> dict:
    """Ten steps that must not wait, once the lines of those that do are known.

    :raises RunError: they wait; says where.
    """
    with TemporaryDirectory() as folder:
        steps = Steps(bench, name, 4 if bench.quick else 32, Path(folder))
        steps(steps.warm_up)
        bench.wait()
        with noticed() as found:
            steps(2)
        if found:
            raise RunError(f"waits in two steps: {', '.join(f'{place} ({count}x)' for place, count in found.items())}")
        torch.cuda.set_sync_debug_mode("error")
        try:
            steps(10)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        bench.wait()
        steps.trainer._read_recent()
    return {"waits in 10 steps": 0}


@contextmanager
def noticed() -> Iterator[Counter]:
    """The lines of this repository within which the device is waited for, and how often."""
    found: Counter = Counter()

    def note(message: Warning | str, *_: object, **__: object) -> None:
        if "called a synchronizing" in str(message):
            found[_place()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        warnings.showwarning = note
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _place() -> str:
    """The innermost line of this repository that runs now, and the one behind it of a library that it calls."""
    stack = traceback.extract_stack()[:-2]
    ours = [
        frame for frame in stack if Path(frame.filename).is_relative_to(ROOT) and "site-packages" not in frame.filename
    ]
    places = [ours[-1]] + [stack[-1]] * (stack[-1] is not ours[-1])
    return " in ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.line}" for frame in reversed(places))


SECTIONS = {
    "machine": machine,
    "conformance": conformance,
    "waits": waits,
    "scoring": scoring,
    "training": training,
    "kernels": kernels,
    "compiled": compiled,
}


def main() -> None:
    parser = Parser("benchmarks/gpu.py", __doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs; also on a CPU")
    parser.add_argument("--output", type=home_path, default=Path("outputs/gpu.json"), help="file for the figures")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="what to measure, with commas between")
    parser.add_argument("--section_seconds", type=number(float, 0.1), default=90.0, help="the most of one section")
    parser.add_argument("--total_seconds", type=number(float, 1), default=270.0, help="the most that all of them take")
    parser.add_argument("--gpu", help="index of the GPU, or cpu (default: the first GPU if there is one)")
    arguments = parser.parse_args()
    wanted = arguments.sections.split(",")
    if unknown := set(wanted) - set(SECTIONS):
        parser.error(f"unknown sections {', '.join(sorted(unknown))}: there are {', '.join(SECTIONS)}")
    device = choose_device(arguments.gpu)
    if device.type != "cuda" and not arguments.quick:
        raise InputError("no CUDA device: only --quick runs on a CPU")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    set_up(device, 0)
    logging.getLogger("trainer").setLevel(logging.WARNING)
    bench = Bench(device, arguments.quick, arguments.output)
    bench.errors.unlink(missing_ok=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    bench.tell("machine", "device", {"name": name} | versions)
    end = time.monotonic() + arguments.total_seconds
    for section in wanted:
        started = time.monotonic()
        try:
            with at_most(bench, max(0.1, min(arguments.section_seconds, end - started))):
                SECTIONS[section](bench)
        except OutOfTime:
            bench.tell(section, "the rest", {"skipped": f"no time is left after {time.monotonic() - started:.0f} s"})
        bench.free()
        bench.tell(section, "seconds", {"seconds": time.monotonic() - started})
    if bench.failed:
        raise RunError(f"{bench.failed} measurements failed, see {bench.errors}")


if __name__ == "__main__":
    sys.exit(run_program("gpu.py", main))
