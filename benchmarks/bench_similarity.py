"""The similarity engine against the published loop, its memory, and how its time grows.

    python benchmarks/bench_similarity.py [--quick] [--json FILE] [--plot FILE]
        [--parts speed,rerank,memory,growth,gallery,gpu]

All parts but `gallery`, and the rows `textdiffs` of `speed`, score with the published diffusion. The baseline is the
published loop as DESIGN describes it: one video at a time with all captions, fp32, captions tokenised for every video,
attention without a fused kernel, every step on its own, (videos, texts, D) tensors kept and grouped afterwards. It runs
in the same process with the same weights and the same noise.
"""

import functools
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import truediv
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig

from diffusion_lm.denoiser import DENOISERS, Denoiser, nearest_word
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from diffusion_lm.vocabulary import Vocabulary
from evaluation.embeddings import new_tokens
from model.clip import EncodedVideos
from model.pretrained import TINY_FOLDER, build_clip
from model.published_textdiffs import PublishedTextDiffs
from model.textdiffs import TextDiffs
from modules.metrics import text_to_video, video_to_text
from modules.noise import sampling_noise
from modules.similarity import Similarity, automatic_block, choose_candidates, similarity
from modules.text_diffusion import TextDiffusion
from modules.text_potential import TextPotential
from modules.video_encoder import VideoEncoder
from utils.command_line import Parser, home_path
from utils.device import autocast, choose_device, choose_precision, set_up
from utils.program import run_program
from utils.threads import one_thread_per_item

logger = logging.getLogger(__name__)

FRAMES, WIDTH, STEPS, LENGTH = 12, 512, 10, 64
FLOP_PER_TOKEN = 1.12e11 / (STEPS * LENGTH)  # of one step of the base denoiser
WORDS = [
    "a",
    "the",
    "man",
    "dog",
    "cat",
    "child",
    "ball",
    "guitar",
    "car",
    "runs",
    "plays",
    "cooks",
    "near",
    "red",
    "big",
]
PARTS = ("speed", "rerank", "memory", "growth", "gallery", "gpu")
SPEED_TEXTS = 64  # of `speed`; fewer pairs are scored in smaller blocks than those of a test
PATCHES = 49  # of a frame, as ViT-B/32 has
Figures = dict[str, dict[str, float | None]]


def known_words(count: int) -> Vocabulary:
    """The words of the captions of `problem`, and others up to `count` in all."""
    return Vocabulary.from_captions([*WORDS, *(f"word{number}" for number in range(count - len(WORDS)))])


def build(
    denoiser: str, length: int, steps: int, sampling: int | None = None, words: int = len(WORDS)
) -> PublishedTextDiffs:
    """The published TextDiffs with random weights, whose condition has an effect."""
    torch.manual_seed(0)
    vocabulary = known_words(words)
    student, teacher = (Denoiser(DENOISERS[denoiser], len(vocabulary), FRAMES) for _ in range(2))
    diffusion = TextDiffusion(student, teacher, GaussianDiffusion.sqrt(steps), WIDTH, length)
    clip = build_clip(CLIPConfig.from_pretrained(TINY_FOLDER).to_dict() | {"projection_dim": WIDTH}, TINY_FOLDER)
    return PublishedTextDiffs(*clip, diffusion, vocabulary, sampling_steps=sampling).eval()


def build_potential(denoiser: str, length: int, words: int = len(WORDS)) -> TextDiffs:
    """TextDiffs with random weights, for the tokens of ViT-B/32, whose videos have an effect."""
    torch.manual_seed(0)
    vocabulary = known_words(words)
    clip = build_clip(CLIPConfig.from_pretrained(TINY_FOLDER).to_dict() | {"projection_dim": WIDTH}, TINY_FOLDER)
    encoder = VideoEncoder(clip[0].config.vision_config.hidden_size, FRAMES, PATCHES)
    student = Denoiser(DENOISERS[denoiser], len(vocabulary), video_width=encoder.width)
    for attention in student.video_attention:
        nn.init.normal_(attention.out.weight, std=0.1)
    table = student.word_embedding.weight.detach().clone()
    potential = TextPotential(student, table, encoder, GaussianDiffusion.sqrt(STEPS), length)
    return TextDiffs(*clip, potential, vocabulary).eval()


def problem(texts: int, videos: int) -> tuple[list[str], Tensor, Tensor]:
    """Captions, text features (texts, D) and frame features (videos, F, D)."""
    generator = torch.Generator().manual_seed(1)
    captions = [" ".join(WORDS[(i * 7 + k * (1 + i % 5)) % len(WORDS)] for k in range(4 + i % 9)) for i in range(texts)]
    return (
        captions,
        torch.randn(texts, WIDTH, generator=generator),
        torch.randn(videos, FRAMES, WIDTH, generator=generator),
    )


@torch.no_grad()
def engine(
    model: PublishedTextDiffs | TextDiffs,
    captions: list[str],
    texts: Tensor,
    frames: Tensor,
    dtype: torch.dtype = torch.float32,
    topk: int = 0,
    tokens: Tensor | None = None,
) -> Similarity:
    """The similarity engine, from features to matrices.

    :param tokens: of the videos, for the text potential.
    """
    device = next(model.parameters()).device
    with autocast(device, dtype), one_thread_per_item(device) as workers:
        word_ids = model.tokenize(captions)["word_ids"].to(device)
        seen = EncodedVideos(frames.to(device), tokens)
        prepared = model.texts(captions, texts.to(device), {"word_ids": word_ids}), model.videos(seen)
        own_text = torch.arange(len(captions)) if len(captions) == len(frames) else None
        return similarity(model, *prepared, own_text, rerank_topk=topk, workers=workers)


@torch.no_grad()
def published_loop(model: PublishedTextDiffs, captions: list[str], texts: Tensor, frames: Tensor) -> Tensor:
    """Strict scores (texts, videos) as the published loop computes them, on the device of the model."""
    diffusion, process = model.text_diffusion, model.sampling_diffusion
    channels, device = diffusion.student.config.channels, diffusion.linear_text.weight.device
    noise = sampling_noise(captions, model.seed, process.num_steps, diffusion.text_length, channels).to(device)
    texts, frames = texts.to(device), frames.to(device)
    table = diffusion.student.word_embedding.weight
    diffused = []
    for video in frames:
        word_ids = model.vocabulary.encode(captions, diffusion.text_length).to(device)
        frame_channels = F.normalize(diffusion.linear_text(video), dim=-1).expand(len(captions), -1, -1)
        x_start = diffusion.x_start(word_ids, noise.x_start)
        condition = torch.einsum("nlc,nfc->nlf", F.normalize(x_start, dim=-1), frame_channels)
        x = noise.x_T
        for index, step in enumerate(reversed(range(process.num_steps))):
            t = torch.full((len(captions),), step, device=device)
            predicted = diffusion.student(x, process.model_times[t], condition)
            predicted = F.embedding(nearest_word(predicted, table), table)
            x = process.ddpm_step(predicted, x, t, noise.steps[:, index])
        shift = diffusion.linear_sims_sum(diffusion.linear_sims(x).transpose(1, 2)).squeeze(-1)
        diffused.append(texts + shift.exp())
    pooled = model.pool_frames(texts, frames)  # (videos, texts, D)
    return F.cosine_similarity(torch.stack(diffused), pooled, dim=-1).t()


@contextmanager
def attention(model: PublishedTextDiffs, implementation: str) -> Iterator[None]:
    """The attention of the denoiser: `eager`, all that transformers had for BERT when it was published, or `sdpa`."""
    config = model.text_diffusion.student.input_transformers.config
    before, config._attn_implementation = config._attn_implementation, implementation
    try:
        yield
    finally:
        config._attn_implementation = before


def timed(function: Callable[[], object]) -> tuple[float, object]:
    """Seconds of a call, and what it returned."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def speed(quick: bool, figures: Figures) -> list[str]:
    """Pairs/s of the baseline and of the engine in turns, and the median of the ratios of the turns: a machine that is
    shared changes its speed from turn to turn. bf16 where the processor does not emulate it."""
    cpu = torch.device("cpu")
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if choose_precision("auto", cpu) != torch.bfloat16:
        del dtypes["bf16"]
    size, length, texts, rounds = ("small", 16, 8, 1) if quick else ("base", LENGTH, SPEED_TEXTS, 3)
    model, potential, data = build(size, length, STEPS), build_potential(size, length), problem(texts, 1)
    tokens = torch.randn(1, *potential.token_shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    ways: dict[str, Callable[[], Any]] = {"published loop": functools.partial(published_loop, model, *data)}
    for name, dtype in dtypes.items():
        ways[name] = functools.partial(engine, model, *data, dtype)
        ways[f"textdiffs_{name}"] = functools.partial(engine, potential, *data, dtype, tokens=tokens)
    engine(build("tiny", 4, 1), *problem(8, 8))  # threads and libraries start here
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    for _ in range(rounds):
        for name, way in ways.items():
            with attention(model, "eager" if name == "published loop" else "sdpa"):
                spent, found[name] = timed(way)
            seconds[name].append(spent)
            logger.info("%s: %.1f s", name, spent)
    base = seconds["published loop"]
    ratios = {name: median(map(truediv, base, spent)) for name, spent in seconds.items()}
    figures["seconds"] |= {f"{texts} pairs, {name}": median(spent) for name, spent in seconds.items()}
    figures["ratios"] |= {name: ratios[name] for name in dtypes}
    strict = {name: scores.strict for name, scores in found.items() if name != "published loop"}
    for name in dtypes:
        figures["errors"][name] = float((torch.from_numpy(strict[name]) - found["published loop"]).abs().max())
    if "bf16" in dtypes:
        figures["ratios"]["textdiffs, bf16 to fp32"] = median(
            map(truediv, seconds["textdiffs_fp32"], seconds["textdiffs_bf16"])
        )
        figures["errors"]["textdiffs, bf16"] = float(abs(strict["textdiffs_bf16"] - strict["textdiffs_fp32"]).max())
    rates = ", ".join(f"{name} {product_rate(2048, dtype, cpu) / 1e9:.0f}" for name, dtype in dtypes.items())
    return [
        f"{texts} texts x 1 video, L = {length}, {STEPS} steps; GFLOP/s of a product of 2048 here: {rates}",
        *(
            f"{name:16}{texts / median(spent):9.3f} pairs/s{ratios[name]:7.2f} x  seconds "
            + ", ".join(f"{second:.1f}" for second in spent)
            for name, spent in seconds.items()
        ),
    ]


def product_rate(size: int, dtype: torch.dtype, device: torch.device, repeats: int = 20) -> float:
    """FLOP/s of a product of two square matrices."""
    a = torch.randn(size, size, device=device).to(dtype)

    def products(count: int) -> None:
        for _ in range(count):
            a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()

    products(1)
    return repeats * 2 * size**3 / timed(lambda: products(repeats))[0]


@torch.no_grad()
def rerank(quick: bool, figures: Figures) -> list[str]:
    """How many of 1,000 x 1,000 pairs --rerank_topk=50 diffuses: at most a tenth, fewer where the candidates of texts
    are also those of videos."""
    size, topk = (200, 10) if quick else (1000, 50)
    model = build("tiny", 4, 1)
    captions, texts, frames = problem(size, size)
    model.rescores = False  # the first stage alone
    first = choose_candidates(engine(model, captions, texts, frames).undiffused, topk)
    everything = slice(None)
    diffused = int((first.candidates_of_texts(everything) | first.candidates_of_videos(everything)).sum())
    figures["ratios"]["rerank_pairs"] = size**2 / diffused
    return [f"--rerank_topk={topk} of {size} x {size}: {diffused} of {size**2} pairs diffused"]


class Memory(threading.Thread):
    """The most resident memory of this process beyond that of the start, looked at every 5 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_bytes = self.most = self._now()
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.005):
            self.most = max(self.most, self._now())

    def extra_gb(self) -> float:
        """Stop, and say."""
        self.ended.set()
        self.join()
        return (self.most - self.start_bytes) / 1e9

    @staticmethod
    def _now() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory(quick: bool, figures: Figures) -> list[str]:
    """Extra memory of scoring and ranking, DSL included; the block sets it, not how many pairs are reranked."""
    lines = []
    for size in (200, 1000) if quick else (1000, 5000):
        model = build("tiny", 8 if quick else LENGTH, STEPS, sampling=1)
        data = problem(size, size)
        watch = Memory()
        watch.start()
        spent, scores = timed(lambda data=data, model=model: engine(model, *data, topk=1))
        for metric in (text_to_video, video_to_text):
            metric(scores.strict, range(size), True, scores.first)
        figures["memory_gb"][str(size)] = watch.extra_gb()
        figures["seconds"][f"memory_{size}"] = spent
        matrices = 4 * size**2 * 4 / 1e9
        lines.append(
            f"{size} x {size}: {figures['memory_gb'][str(size)]:.3f} GB more, of which {matrices:.3f} GB are the four "
            f"matrices; {spent:.1f} s"
        )
    return lines


def growth(quick: bool, figures: Figures) -> list[str]:
    """Seconds for N texts x N videos: all pairs, and the best 10 of each query."""
    model = build("tiny", 8, STEPS, sampling=1)
    lines = [f"{'N':>6}{'all pairs':>12}{'rerank 10':>12}"]
    engine(model, *problem(50, 50))
    for size in (50, 100) if quick else (100, 200, 400):
        data = problem(size, size)
        spent = [timed(lambda data=data, topk=topk: engine(model, *data, topk=topk))[0] for topk in (0, 10)]
        figures["seconds"] |= {f"all_{size}": spent[0], f"rerank_{size}": spent[1]}
        lines.append(f"{size:6}{spent[0]:10.2f} s{spent[1]:10.2f} s")
    return lines


@torch.no_grad()
def gallery(quick: bool, figures: Figures) -> list[str]:
    """Memory and seconds of the text potential over a large gallery with the tokens of ViT-B/32, each video read with
    the best of a few texts: tokens in memory, and in a file as with --save_memory_mode."""
    videos, texts = (200, 4) if quick else (10_000, 4)
    model = build_potential("tiny", LENGTH)
    captions, features, frames = problem(texts, videos)
    lines = []
    for place in ("memory", "file"):
        watch = Memory()
        watch.start()
        with TemporaryDirectory(dir=".") as folder, one_thread_per_item(torch.device("cpu")) as workers:
            tokens = new_tokens(videos, model.token_shape, Path(folder) if place == "file" else None)
            for rows in torch.arange(videos).split(100):
                tokens[rows] = torch.randn(len(rows), *model.token_shape, dtype=tokens.dtype)
            read = model.texts(captions, features, model.tokenize(captions))
            seen = model.videos(EncodedVideos(frames, tokens))
            score = functools.partial(similarity, model, read, seen, rerank_topk=1, workers=workers)
            spent, scores = timed(score)
        extra = watch.extra_gb()
        figures["memory_gb"][f"gallery_{place}"], figures["seconds"][f"gallery_{place}"] = extra, spent
        lines.append(
            f"{texts} texts x {videos} videos, tokens {tokens.nbytes / 1e9:.2f} GB in {place}: {extra:.2f} GB more, "
            f"{scores.pairs_diffused} pairs read in {spent:.1f} s"
        )
    return [*lines, "pages of a file that are in memory count, though the system may take them back"]


@torch.no_grad()
def gpu(quick: bool, figures: Figures) -> list[str]:
    """Pairs/s of the base denoiser in bf16 on a GPU, and its share of the rate of a large product there."""
    if not torch.cuda.is_available():
        return ["no CUDA GPU here"]
    device = choose_device(None)
    model = build("base", LENGTH, STEPS).to(device)
    block = automatic_block(model.pair_bytes, device, 2**20)
    data = problem(max(1, block // 256), 256)
    pairs = len(data[0]) * 256
    engine(model, *problem(8, 256), dtype=torch.bfloat16)
    torch.cuda.synchronize()
    spent, _ = timed(lambda: engine(model, *data, dtype=torch.bfloat16))
    peak = product_rate(8192, torch.bfloat16, device)
    share = pairs / spent * FLOP_PER_TOKEN * STEPS * LENGTH / peak
    figures["ratios"]["gpu_share_of_matmul"] = share
    figures["seconds"]["gpu_per_1000_pairs"] = 1000 * spent / pairs
    name, rate = torch.cuda.get_device_name(device), pairs / spent
    return [f"{name}, bf16: {rate:.0f} pairs/s, {100 * share:.0f} % of the rate of a large product there"]


def plot(path: Path, seconds: dict[str, float]) -> None:
    """The growth of time as a picture."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(6, 4), layout="constrained")).add_subplot(
        xlabel="N texts x N videos", ylabel="seconds", xscale="log", yscale="log"
    )
    for kind, label in (("all", "all pairs"), ("rerank", "best 10 of each query")):
        points = sorted((int(name.split("_")[1]), s) for name, s in seconds.items() if name.startswith(f"{kind}_"))
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = Parser("benchmarks/bench_similarity.py", __doc__.splitlines()[0])
    parser.add_argument("--json", type=home_path, help="file for the figures (default: none)")
    parser.add_argument("--plot", type=home_path, help="file for the plot of the growth, PNG (default: none)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts to run, with commas between")
    arguments = parser.parse_args()
    wanted = arguments.parts.split(",")
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    set_up(torch.device("cpu"), 0)
    figures: Figures = {"ratios": {}, "errors": {}, "memory_gb": {}, "seconds": {}}
    parts = {"speed": speed, "rerank": rerank, "memory": memory, "growth": growth, "gallery": gallery, "gpu": gpu}
    logger.info("%d threads, torch %s", torch.get_num_threads(), torch.__version__)
    for name in wanted:
        logger.info("\n%s\n%s", name, "\n".join(parts[name](arguments.quick, figures)))
    logger.info("\nratios %s\nerrors %s", rounded(figures["ratios"]), rounded(figures["errors"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if arguments.plot and "growth" in wanted:
        plot(arguments.plot, figures["seconds"])


def rounded(values: dict[str, float]) -> str:
    """Named figures with three digits."""
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())


if __name__ == "__main__":
    sys.exit(run_program("bench_similarity.py", main))
