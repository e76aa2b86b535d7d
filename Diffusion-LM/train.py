"""Pre-train a Diffusion-LM, the teacher of TextDiffs: `python Diffusion-LM/train.py --dataset_name=MSRVTT`."""

import json
import logging
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from diffusion_lm import weights
from diffusion_lm.command_line import Parser, number
from diffusion_lm.denoiser import DENOISERS, MAX_POSITIONS, Denoiser
from diffusion_lm.errors import InputError
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from diffusion_lm.sampling import sample_captions
from diffusion_lm.training import HeldOut, TrainingSettings, split_held_out, spread_word_table, train
from diffusion_lm.vocabulary import SPECIAL_TOKENS, Vocabulary
from trainer.device import choose_device, choose_precision
from trainer.run_folder import run_program

logger = logging.getLogger(__name__)

MODELS = Path(__file__).resolve().parent / "diffusion_models"
MIN_TEXT_LEN = 3  # START, a word, END


@dataclass(frozen=True)
class Recipe:
    """What suits a size of denoiser."""

    steps: int
    lr: float
    dropout: float


RECIPES = {
    "base": Recipe(steps=200_000, lr=1e-4, dropout=0.1),  # as published
    "small": Recipe(steps=50_000, lr=3e-4, dropout=0.1),
    "tiny": Recipe(steps=6_000, lr=2e-3, dropout=0.0),  # too small to memorise captions
}


def main() -> None:
    # 1. settings
    args = parse_args()
    device = choose_device(args.gpu)
    dtype = choose_precision(args.precision, device)
    settings = TrainingSettings(
        steps=args.steps,
        batch_size=args.batch_size,
        lr=args.lr,
        ema_rate=args.ema_rate,
        seed=args.seed,
        dtype=dtype,
        log_step=args.log_step,
        eval_every=args.eval_every,
    )

    # 2. captions
    captions, held_out_captions = split_held_out(read_captions(args), args.held_out, args.seed)
    vocabulary = Vocabulary.from_captions(captions, args.min_count)
    if len(vocabulary) == len(SPECIAL_TOKENS):
        raise InputError(f"--min_count={args.min_count}: no word occurs so often")
    word_ids, held_out_ids = (vocabulary.encode(texts, args.text_len) for texts in (captions, held_out_captions))

    # 3. model
    torch.manual_seed(args.seed)
    config = replace(DENOISERS[args.denoiser], dropout=args.dropout)
    denoiser = Denoiser(config, len(vocabulary))
    spread_word_table(denoiser)
    random_table = torch.randn(len(vocabulary), config.channels)
    diffusion = GaussianDiffusion.sqrt(args.diffusion_steps)

    # 4. training
    with output_folder(args.output_dir) as folder:
        logger.info("%d captions, %d held out, %d words", len(captions), len(held_out_captions), len(vocabulary))
        logger.info("%.1f %% of held-out words are unknown", 100 * vocabulary.unknown_share(held_out_captions))
        logger.info("denoiser %s, device %s, %s, folder %s", args.denoiser, device, dtype, folder)
        started = time.monotonic()
        averaged, held_out = train(
            denoiser.to(device), diffusion.to(device), word_ids, held_out_ids, settings, Recorder(folder)
        )
        seconds = time.monotonic() - started

        # 5. files
        training_args = describe(args, settings, config.to_dict(), vocabulary, held_out, len(held_out_captions))
        state = {name: tensor.cpu() for name, tensor in averaged.state_dict().items()}
        path = weights.save(folder, state, random_table, vocabulary, training_args | {"seconds": round(seconds, 1)})
        logger.info("%s after %.0f s", path, seconds)

        # 6. samples
        for caption in sample_captions(averaged, diffusion, vocabulary, args.samples, args.text_len, args.seed):
            logger.info("%s", caption)


def parse_args() -> Namespace:
    """The command line, with what follows from other flags filled in."""
    parser = Parser("train.py", "Pre-train a Diffusion-LM on captions.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset_name", help="train on the captions of its training split")
    source.add_argument("--captions", type=Path, metavar="FILE", help="train on a text file, a caption a line")
    parser.add_argument("--data_dir", type=Path, default="./data", help="folder that holds <Dataset>/")
    parser.add_argument("--msrvtt_train_file", choices=("7k", "9k"), default="9k", help="training split of MSR-VTT")
    parser.add_argument("--output_dir", type=Path, help="folder to write (default: diffusion_models/<name>)")
    parser.add_argument("--denoiser", choices=DENOISERS, default="base", help="size of the network")
    parser.add_argument("--diffusion_steps", type=number(int, 1), default=10, help="T")
    parser.add_argument(
        "--text_len", type=number(int, MIN_TEXT_LEN, MAX_POSITIONS), default=64, help="L, tokens of a caption"
    )
    parser.add_argument("--min_count", type=number(int, 1), default=5, help="words rarer than this become UNK")
    parser.add_argument("--held_out", type=number(float, 0, 0.5), default=0.02, help="share of the distinct captions")
    by_size = "default: {}".format(", ".join(f"{name} {{}}" for name in RECIPES)).format
    parser.add_argument("--steps", type=number(int, 1), help=by_size(*(r.steps for r in RECIPES.values())))
    parser.add_argument("--lr", type=number(float), help=by_size(*(r.lr for r in RECIPES.values())))
    parser.add_argument("--dropout", type=number(float, 0, 1), help=by_size(*(r.dropout for r in RECIPES.values())))
    return parser.parse_args()
