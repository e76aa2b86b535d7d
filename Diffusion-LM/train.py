"""Pre-train a Diffusion-LM for TextDiffs: `python Diffusion-LM/train.py --dataset_name=MSRVTT`."""

import json
import logging
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from datasets.annotations import load_captions
from diffusion_lm import weights
from diffusion_lm.denoiser import DENOISERS, MAX_POSITIONS, Denoiser
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from diffusion_lm.sampling import sample_captions
from diffusion_lm.training import (
    MAX_GRADIENT_NORM,
    Share,
    Training,
    TrainingSettings,
    split_held_out,
    spread_word_table,
)
from diffusion_lm.vocabulary import SPECIAL_TOKENS, Vocabulary
from trainer.pretraining import RUN, SavedTraining, earlier_run, settings_of
from trainer.run_folder import LOG_FILE, Records
from utils import distributed
from utils.command_line import MANY_FLAGS, Parser, number
from utils.device import choose_device, choose_precision
from utils.errors import InputError
from utils.program import run_program

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
    "tiny": Recipe(steps=12_000, lr=3e-3, dropout=0.0),  # too small to memorise captions
}


def main() -> None:
    args = parse_args()
    here = distributed.find_processes()
    device = choose_device(args.gpu, here)
    with distributed.process_group(here, device):
        run(args, here, device)


def run(args: Namespace, here: distributed.Processes, device: torch.device) -> None:
    """The training run, in one of its processes."""
    # 1. the run that goes on, captions
    earlier = earlier_run(args)
    with distributed.main_first():
        all_captions = read_captions(args)
    run_settings = settings_of(args, all_captions, earlier)
    if earlier and earlier.finished:
        logger.info("--resume: the run is finished, there is nothing to do: %s", earlier.path)
        return
    captions, held_out_captions = split_held_out(all_captions, args.held_out, args.seed)
    vocabulary = Vocabulary.from_captions(captions, args.min_count)
    if len(vocabulary) == len(SPECIAL_TOKENS):
        raise InputError(f"--min_count={args.min_count}: no word occurs so often")
    word_ids, held_out_ids = (vocabulary.encode(texts, args.text_len) for texts in (captions, held_out_captions))

    # 2. model
    torch.manual_seed(args.seed)
    denoiser = Denoiser(replace(DENOISERS[args.denoiser], dropout=args.dropout), len(vocabulary))
    spread_word_table(denoiser)
    random_table = torch.randn_like(denoiser.word_embedding.weight)
    denoiser, diffusion = denoiser.to(device), GaussianDiffusion.sqrt(args.diffusion_steps).to(device)

    # 3. training
    step = earlier.step if earlier else 0
    with output_folder(args.output_dir, args.resume, step) if here.is_main else nullcontext() as record:
        unknown = vocabulary.unknown_share(held_out_captions)
        settings = training_settings(args, here.size, device)
        logger.info("%d captions and %d held out, L = %d", len(captions), len(held_out_captions), args.text_len)
        logger.info("%d words; %.1f %% of the held-out words are not among them", len(vocabulary), 100 * unknown)
        logger.info("denoiser %s on %s, %s", args.denoiser, device, settings.dtype)
        logger.info("batch of %d captions: %d processes x %d", settings.batch_size, here.size, args.batch_size)
        share = Share(here.rank, here.size, distributed.synchronised, distributed.mean)
        training = Training(denoiser, diffusion, word_ids, held_out_ids, settings, record, share)
        saved = SavedTraining(training, args.output_dir, args.save_steps, run_settings, earlier)
        del earlier  # of a base denoiser 1.4 GB
        seconds = saved.train()
        if not here.is_main:
            return

        # 4. files
        averaged = training.average.module
        training_args = published_names(args, denoiser) | {
            "held_out": {"captions": len(held_out_captions), "unknown_words": unknown, **asdict(training.held_out)},
            "batch_size": settings.batch_size,
            "seconds": round(seconds, 1),
            RUN: run_settings,
        }
        state = {name: tensor.cpu() for name, tensor in averaged.state_dict().items()}
        path = weights.save(args.output_dir, state, random_table.cpu(), vocabulary, training_args)
        saved.delete_checkpoints()
        logger.info("%.0f s; %s", seconds, path)

        # 5. samples
        for caption in sample_captions(averaged, diffusion, vocabulary, args.samples, args.text_len, args.seed):
            logger.info("%s", caption)


def training_settings(args: Namespace, processes: int, device: torch.device) -> TrainingSettings:
    """What the flags say of training in so many processes."""
    return TrainingSettings(
        steps=args.steps,
        batch_size=args.batch_size * processes,
        lr=args.lr,
        ema_rate=args.ema_rate,
        seed=args.seed,
        dtype=choose_precision(args.precision, device),
        log_step=args.log_step,
        eval_every=args.eval_every,
    )


def parse_args() -> Namespace:
    """The command line, with what follows from other flags filled in."""
    parser = Parser("Diffusion-LM/train.py", __doc__, MANY_FLAGS)
    captions = parser.add_argument_group("captions", "What it learns from. Videos are not needed.")
    source = captions.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--dataset_name", metavar="NAME", help="the captions of its training split (default: none; this or --captions)"
    )
    source.add_argument("--captions", type=Path, metavar="FILE", help="a text file, a caption a line (default: none)")
    captions.add_argument(
        "--data_dir", type=Path, default="./data", metavar="DIR", help="folder that holds <Dataset>/ with annotations"
    )
    captions.add_argument(
        "--annotations", type=Path, metavar="FILE", help="annotation file of --dataset_name=custom (default: none)"
    )
    captions.add_argument("--msrvtt_train_file", choices=("7k", "9k"), default="9k", help="training split of MSR-VTT")
    captions.add_argument(
        "--min_count", type=number(int, 1), default=5, metavar="N", help="words that occur less often become UNK"
    )
    captions.add_argument(
        "--held_out",
        type=number(float, 0, 0.5),
        default=0.02,
        metavar="SHARE",
        help="share of the distinct captions that it is measured on, up to 0.5",
    )

    network = parser.add_argument_group("network", "Its size, and the lengths that its retrieval model shares.")
    network.add_argument(
        "--denoiser", choices=RECIPES, default="base", help="size of the network; base is that of BERT base"
    )
    network.add_argument(
        "--diffusion_steps", type=number(int, 1), default=10, metavar="STEPS", help="T, steps of the diffusion"
    )
    network.add_argument(
        "--text_len",
        type=number(int, MIN_TEXT_LEN, MAX_POSITIONS),
        default=64,
        metavar="TOKENS",
        help="L, tokens of a caption; as --diffusion_text_len of the retrieval",
    )
    network.add_argument(
        "--dropout", type=number(float, 0, 1), metavar="SHARE", help=f"dropout ({_by_size('dropout')})"
    )

    training = parser.add_argument_group("training", "The optimiser, its steps and the device.")
    training.add_argument(
        "--steps", type=number(int, 1), metavar="STEPS", help=f"steps of training ({_by_size('steps')})"
    )
    training.add_argument("--lr", type=number(float), metavar="X", help=f"learning rate ({_by_size('lr')})")
    training.add_argument(
        "--batch_size", type=number(int, 1), default=64, metavar="CAPTIONS", help="captions of a step in each process"
    )
    training.add_argument(
        "--ema_rate",
        type=number(float, 0, 1),
        default=0.9999,
        metavar="X",
        help="decay of the moving average of the weights",
    )
    training.add_argument("--seed", type=number(int, 0), default=24, metavar="N", help="seed of everything random")
    training.add_argument(
        "--gpu", metavar="INDEX", help="index of the GPU, or cpu (default: the first GPU if there is one)"
    )
    training.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="arithmetic: auto is bf16 where the device is fast at it, else fp32",
    )

    output = parser.add_argument_group("output", "Where files go, and what is logged how often.")
    output.add_argument(
        "--output_dir",
        type=Path,
        metavar="DIR",
        help="folder to write (default: Diffusion-LM/diffusion_models/<data set or file name>)",
    )
    for name, default, unit, said in (
        ("log_step", 50, "STEPS", "steps between log lines"),
        ("eval_every", 1000, "STEPS", "steps between measurements on held-out captions"),
        ("save_steps", 2000, "STEPS", "steps between checkpoints; the newest two stay, and none after the run"),
    ):
        output.add_argument(f"--{name}", type=number(int, 1), default=default, metavar=unit, help=said)
    output.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint in --output_dir with its settings, or begin where there is none; "
        "nothing to do for a finished run",
    )
    output.add_argument(
        "--samples", type=number(int, 0), default=0, metavar="CAPTIONS", help="captions to generate at the end"
    )
    args = parser.parse_args()
    recipe = RECIPES[args.denoiser]
    for name in ("steps", "lr", "dropout"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(recipe, name))
    if args.output_dir is None:
        args.output_dir = MODELS / (args.dataset_name or args.captions.stem)
    return args


def _by_size(name: str) -> str:
    """What the help says of a default that follows from --denoiser."""
    return "default: " + ", ".join(f"{size} {getattr(recipe, name)}" for size, recipe in RECIPES.items())


def read_captions(args: Namespace) -> list[str]:
    """The captions to learn from, one blank between words."""
    if args.dataset_name:
        place = args.annotations if args.dataset_name == "custom" else args.data_dir / args.dataset_name
        if place is None:
            raise InputError("--annotations is missing: the annotation file of --dataset_name=custom")
        return load_captions(args.dataset_name, place, args.msrvtt_train_file)
    try:
        lines = args.captions.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"--captions={args.captions} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--captions={args.captions} is not UTF-8 text (byte {error.start})") from error
    return [caption for line in lines if (caption := " ".join(line.split()))]


@contextmanager
def output_folder(folder: Path, resume: bool, step: int) -> Iterator[Callable[[dict], None]]:
    """Make the folder, log to its log.txt; gives the function that logs figures and adds them to metrics.jsonl.

    :param resume: add to the log that is there.
    :param step: from which the run goes on; figures of later ones come again.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(folder / LOG_FILE, mode="a" if resume else "w", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output_dir={folder} cannot be written: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        with closing(Records(folder, step)) as records:
            yield partial(add_record, records)
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def add_record(records: Records, figures: dict) -> None:
    """Log figures and add them to metrics.jsonl."""
    logger.info("%s", json.dumps(figures))
    records.append(figures)


def published_names(args: Namespace, denoiser: Denoiser) -> dict:
    """Hyper-parameters for training_args.json, under the published names where there are any."""
    return {
        "dataset_name": args.dataset_name or args.captions.stem,
        "denoiser": denoiser.config.to_dict(),
        "vocab_size": denoiser.vocabulary_size,
        "in_channel": denoiser.config.channels,
        "out_channel": denoiser.config.channels,
        "dropout": args.dropout,
        "diffusion_steps": args.diffusion_steps,
        "noise_schedule": "sqrt",
        "predict_xstart": True,
        "learn_sigma": False,
        "sigma_small": False,
        "training_mode": "e2e",
        "text_len": args.text_len,
        "min_count": args.min_count,
        "steps": args.steps,
        "lr_anneal_steps": args.steps,
        "lr": args.lr,
        "batch_size": args.batch_size,
        "weight_decay": 0.0,
        "gradient_clipping": MAX_GRADIENT_NORM,
        "ema_rate": args.ema_rate,
        "seed": args.seed,
    }


if __name__ == "__main__":
    sys.exit(run_program("train.py", main))
