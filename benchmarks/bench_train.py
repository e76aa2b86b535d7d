"""Speed of training, against the plain loop that the field runs.

    python benchmarks/bench_train.py [--quick] [--json FILE]

One batch and one set of random weights (ViT-B/32 and the base denoiser; --quick: both tiny) go through the plain loop
that the field runs (fp32, eager attention, captions tokenised in each step, AdamW parameter by parameter, the loss read
after each step), and then through what train.py does, one change after the other. Then a step of X-Pool and TextDiffs
at the sizes of the demo, in each precision; and two processes on this machine against one, with the tiny model.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, PreTrainedModel, PreTrainedTokenizerBase

from diffusion_lm.denoiser import DENOISERS, Denoiser
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from diffusion_lm.vocabulary import Vocabulary
from model.factory import video_encoder
from model.pretrained import TINY_FOLDER, build_clip, load_clip
from model.published_textdiffs import PublishedTextDiffs
from model.retrieval import RetrievalModel
from model.textdiffs import TextDiffs
from model.xpool import XPool
from modules.text_diffusion import TextDiffusion
from modules.text_potential import TextPotential
from trainer.loop import GRADIENT_NORM
from trainer.optimizer import ADAM_BETAS, ADAM_EPS, MuonAdamW, parameter_groups
from trainer.throughput import memory_gb
from trainer.training_step import TrainingStep
from utils import distributed
from utils.command_line import Parser, home_path
from utils.device import autocast, choose_device, choose_precision, random_state, set_random_state
from utils.launch import Processes, free_port
from utils.machine import keep_freed_memory
from utils.program import run_program

FRAMES, LENGTH, DIFFUSION_STEPS = 12, 64, 10
MATRIX_SIZES = {"cuda": (1024, 8192), "cpu": (128, 256, 512, 1024, 2048)}
MATRIX_REPEATS = 3
LONG_PRODUCT = 0.01  # seconds, from which on no larger product is tried
TEXT = (
    "a man woman dog cat plays runs cooks sings eats reads holds the red blue old young guitar ball fish song book in "
    "on with street kitchen park room"
)
WORDS = TEXT.split()
CAPTION_WORDS = 10
DDP_BATCH = 32
DEMO_BATCH, DEMO_FRAMES, DEMO_LENGTH = 64, 6, 20


class Rates:
    """Learning rates of `parameter_groups`."""

    clip_lr, noclip_lr, potential_lr, weight_decay = 1e-6, 1e-5, 1e-5, 0.2


@dataclass(frozen=True)
class Way:
    """A way to train, by what it changes in the plain loop."""

    name: str
    attention: str = "eager"
    tokenise_once: bool = False
    fused: bool = False
    read_loss: bool = True
    dtype: torch.dtype = torch.float32
    keeps_memory: bool = False  # for good: what follows keeps it, too
    compiled: bool = False


PLAIN = Way("plain loop, fp32")


def ladder(device: torch.device, compiled: bool) -> list[Way]:
    """From the plain loop to what train.py does, one change at a time."""
    ways = [PLAIN]
    ways.append(replace(ways[-1], name="+ SDPA attention", attention="sdpa"))
    ways.append(replace(ways[-1], name="+ tokens once, no reading", tokenise_once=True, read_loss=False))
    ways.append(replace(ways[-1], name="+ fused AdamW", fused=True))
    if choose_precision("auto", device) == torch.bfloat16:
        ways.append(replace(ways[-1], name="+ bf16", dtype=torch.bfloat16))
    if device.type == "cpu":
        ways.append(replace(ways[-1], name="+ freed memory is kept", keeps_memory=True))
    if compiled:
        ways.append(replace(ways[-1], name="+ compiled", compiled=True))
    return ways


def make_model(tiny: bool, way: Way, device: torch.device) -> PublishedTextDiffs:
    """The published TextDiffs with the same random weights for every way, in training mode but without dropout."""
    torch.manual_seed(0)
    clip_config = CLIPConfig.from_pretrained(TINY_FOLDER) if tiny else CLIPConfig()  # the default is ViT-B/32
    clip, tokenizer = build_clip(clip_config.to_dict(), TINY_FOLDER)
    sizes = replace(DENOISERS["tiny" if tiny else "base"], dropout=0.0)
    vocabulary = Vocabulary.from_captions([TEXT] * 5)
    student, teacher = (Denoiser(sizes, len(vocabulary), FRAMES) for _ in range(2))
    diffusion = TextDiffusion(
        student, teacher, GaussianDiffusion.sqrt(DIFFUSION_STEPS), clip.config.projection_dim, LENGTH
    )
    clip.set_attn_implementation(way.attention)
    for denoiser in (student, teacher):
        denoiser.input_transformers.config._attn_implementation = way.attention
    model = PublishedTextDiffs(clip, tokenizer, diffusion, vocabulary, transformer_dropout=0.0).to(device).train()
    model.prepare(gradient_checkpointing=False, compiled=way.compiled)
    return model


def make_batch(model: RetrievalModel, size: int, frames: int = FRAMES) -> tuple[Tensor, list[str]]:
    """Random frames (size, F, 3, R, R) and captions."""
    generator = torch.Generator().manual_seed(1)
    side = model.clip.config.vision_config.image_size
    pixels = torch.randint(256, (size, frames, 3, side, side), dtype=torch.uint8, generator=generator)
    words = torch.randint(len(WORDS), (size, CAPTION_WORDS), generator=generator)
    return pixels, [" ".join(WORDS[i] for i in row) for row in words.tolist()]


def stepper(
    model: RetrievalModel, way: Way, size: int, device: torch.device, shared: bool = False, frames: int = FRAMES
) -> Callable[[int], Tensor]:
    """One training step as a function of its number; returns the loss.

    :param shared: with the gradients of all processes.
    :param frames: of a video.
    """
    pixels, captions = make_batch(model, size, frames)
    step = TrainingStep(model, 1, device, way.dtype)
    if shared:
        step = distributed.synchronised(step)
    settings = {"betas": ADAM_BETAS, "eps": ADAM_EPS, "fused": way.fused, "foreach": None if way.fused else False}
    optimizer = (MuonAdamW if model.moved_by_muon else AdamW)(parameter_groups(model, Rates), **settings)
    tokens = model.tokenize(captions) if way.tokenise_once else None
    index = torch.arange(size)

    def run(number: int) -> Tensor:
        chosen = model.select(tokens if way.tokenise_once else model.tokenize(captions), index)
        optimizer.zero_grad(set_to_none=True)
        loss = sum(step(pixels, chosen, model.draw_noise(number, range(size))).values())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()
        if way.read_loss:
            loss.item()
        return loss.detach()

    return run


def seconds_of(run: Callable[[int], Tensor], steps: int, device: torch.device) -> tuple[float, float]:
    """Seconds of the fastest step, and the loss of the first one, which is not timed."""
    first = run(0).item()
    best = float("inf")
    for number in range(1, steps + 1):
        started = time.perf_counter()
        run(number)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best, first


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product on this device, measured; smaller ones where a device is slow at the type."""
    rate = 0.0
    apart = torch.Generator(device)  # how many numbers are drawn depends on the clock
    for size in MATRIX_SIZES[device.type]:
        a, b = (torch.randn(size, size, device=device, generator=apart).to(dtype) for _ in range(2))
        seconds = min(_seconds_of_product(a, b, device) for _ in range(MATRIX_REPEATS))
        rate = 2 * size**3 / seconds
        if seconds > LONG_PRODUCT:
            break
    return rate


def _seconds_of_product(a: Tensor, b: Tensor, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    torch.mm(a, b)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def flops_per_pair(
    model: RetrievalModel, frames: Tensor, tokens: dict[str, Tensor], device: torch.device, dtype: torch.dtype
) -> int:
    """FLOPs of the matrix products in the forward and backward pass of a pair, the mean over a batch of B.

    What grows with the batch is small, and here that of a batch of B. It takes 1 + `model.negatives` pairs for each
    text to meet as many wrong videos as in a large batch. Random streams stay as they were, and no gradients are left.

    :param frames: uint8 (B, F, 3, R, R); `tokens` what `model.select` gave of B pairs.
    """
    before, count = random_state(device), len(frames)
    noise = tuple(type(part)(*(rows.to(device) for rows in part)) for part in model.draw_noise(0, range(count)))
    with FlopCounterMode(display=False) as counter:
        with autocast(device, dtype):
            pairs = model.encode_pairs(
                frames.to(device), **{name: rows.to(device) for name, rows in tokens.items()}, noise=noise
            )
            mean = model.pooled_sum(pairs.texts, pairs.videos.frames) / count if model.needs_mean_pooled else None
            sims = model.similarities(pairs, pairs.videos, torch.arange(count, device=device), mean)
        sum(part.sum() for part in (sims, *pairs.penalties.values())).backward()
    model.zero_grad(set_to_none=True)
    set_random_state(before, device)
    return counter.get_total_flops() // count


def flops_of_pair(tiny: bool, device: torch.device) -> int:
    """FLOPs of a pair in the plain loop; nothing in the ladder changes the products."""
    model = make_model(tiny, PLAIN, device)
    frames, captions = make_batch(model, 1)
    tokens = model.select(model.tokenize(captions), torch.tensor([0]))
    return flops_per_pair(model, frames, tokens, device, PLAIN.dtype)


def compare_ways(args: argparse.Namespace, device: torch.device, report: dict) -> None:
    """Time each way with the same weights and batch."""
    plain = plain_loss = None
    ways = ladder(device, args.compile)
    flops = flops_of_pair(args.quick, device)
    for way in ways:
        if way.keeps_memory:
            keep_freed_memory()
        model = make_model(args.quick, way, device)
        seconds, loss = seconds_of(stepper(model, way, args.batch_size, device), args.steps, device)
        plain, plain_loss = plain or seconds, loss if plain_loss is None else plain_loss
        rate = args.batch_size / seconds
        share = rate * flops / matmul_rate(device, way.dtype)
        say(f"{way.name:<28}{seconds:9.3f} s{rate:10.2f} pairs/s{plain / seconds:8.2f} x{100 * share:8.0f} %")
        report["seconds"][way.name] = seconds
        report["ratios"][way.name] = plain / seconds
        report["ratios"][f"matrix rate, {way.name}"] = share
        report["errors"][f"loss, {way.name}"] = abs(loss - plain_loss)
        report["memory_gb"][way.name] = memory_gb(device)
        del model


def compare_models(args: argparse.Namespace, device: torch.device, report: dict) -> None:
    """A step of X-Pool and of TextDiffs at the sizes of the demo, in each precision."""
    say(f"{DEMO_BATCH} pairs at the sizes of the demo")
    ways = [way for way in ladder(device, False) if way.fused and not way.keeps_memory]
    for name, build in (("X-Pool", demo_xpool), ("TextDiffs", demo_textdiffs)):
        for way in ways:
            torch.manual_seed(0)
            model = build(*load_clip("tiny-shapes")).to(device).train()
            seconds, _ = seconds_of(stepper(model, way, DEMO_BATCH, device, frames=DEMO_FRAMES), args.steps, device)
            say(f"{name + ', ' + way.name:<40}{seconds:9.3f} s")
            report["seconds"][f"{name}, demo, {way.name}"] = seconds


def demo_xpool(clip: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> XPool:
    """X-Pool as in scripts/compare.sh."""
    return XPool(clip, tokenizer, transformer_dropout=0.0)


def demo_textdiffs(clip: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> TextDiffs:
    """TextDiffs as in scripts/demo.sh, with random weights beside those of CLIP."""
    vocabulary = Vocabulary.from_captions([TEXT] * 5)
    encoder = video_encoder(clip, DEMO_FRAMES)
    student = Denoiser(replace(DENOISERS["tiny"], dropout=0.0), len(vocabulary), video_width=encoder.width)
    table = student.word_embedding.weight.detach().clone()
    process = GaussianDiffusion.sqrt(DIFFUSION_STEPS)
    potential = TextPotential(student, table, encoder, process, DEMO_LENGTH)
    return TextDiffs(clip, tokenizer, potential, vocabulary, transformer_dropout=0.0)


def compare_processes(args: argparse.Namespace, report: dict) -> None:
    """One process with two threads, against two processes with one each, with and without shared gradients."""
    alone = _in_processes(1, False, args.steps)
    apart = _in_processes(2, False, args.steps)
    shared = _in_processes(2, True, args.steps)
    rows = {"1 process, 2 threads": alone, "2 processes, nothing shared": apart, "2 processes, DDP": shared}
    for name, seconds in rows.items():
        say(f"{name:<28}{seconds:9.3f} s{DDP_BATCH / seconds:10.2f} pairs/s{alone / seconds:8.2f} x")
        report["seconds"][f"batch {DDP_BATCH}, {name}"] = seconds
    report["ratios"]["2 processes against 1"] = alone / shared
    report["ratios"]["DDP overhead"] = shared / apart - 1


def _in_processes(size: int, shared: bool, steps: int) -> float:
    context = multiprocessing.get_context("spawn")
    queue, port = context.Queue(), free_port()
    members = [context.Process(target=_member, args=(rank, size, port, shared, steps, queue)) for rank in range(size)]
    for member in members:
        member.start()
    seconds = max(queue.get() for _ in members)
    for member in members:
        member.join()
    return seconds


def _member(rank: int, size: int, port: int, shared: bool, steps: int, queue: multiprocessing.Queue) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(max(1, 2 // size))
    keep_freed_memory()
    device, way = torch.device("cpu"), Way("ours", "sdpa", tokenise_once=True, fused=True, read_loss=False)
    here = Processes(rank, size, rank, size) if shared else Processes()
    with distributed.process_group(here, device):
        run = stepper(make_model(True, way, device), way, DDP_BATCH // size, device, shared)
        queue.put(seconds_of(run, steps, device)[0])


def say(line: str) -> None:
    """A line of the table."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = Parser("benchmarks/bench_train.py", __doc__.splitlines()[0])
    parser.add_argument("--json", type=home_path, help="file for the figures (default: none)")
    parser.add_argument("--quick", action="store_true", help="tiny models")
    parser.add_argument("--batch_size", type=int, help="pairs (default: 4 on a CPU, 32 on a GPU)")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each way, the fastest counts")
    parser.add_argument("--compile", action="store_true", help="time torch.compile as well")
    parser.add_argument("--gpu", help="index of the GPU, or cpu (default: the first GPU if there is one)")
    args = parser.parse_args()
    device = choose_device(args.gpu)
    args.batch_size = args.batch_size or (32 if device.type == "cuda" else 4)
    report = {
        "device": str(device),
        "batch_size": args.batch_size,
        "ratios": {},
        "seconds": {},
        "memory_gb": {},
        "errors": {},
    }
    models = "tiny" if args.quick else "ViT-B/32, base"
    say(f"{device}, {torch.get_num_threads()} threads, batch of {args.batch_size}, {models}")
    say(f"{'':<28}{'step':>11}{'':>18}{'plain':>10}{'matrix rate':>12}")
    compare_ways(args, device, report)
    compare_models(args, device, report)
    compare_processes(args, report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_program("bench_train.py", main))
