"""The flags of Diffusion-LM/train.py."""

import math
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from config.config import flag, flag_parser
from utils.errors import InputError

MODELS = Path(__file__).resolve().parent.parent / "Diffusion-LM" / "diffusion_models"
MIN_TEXT_LEN, MAX_TEXT_LEN = 3, 512  # START, a word, END; the positions of a denoiser

# what the captions tell, where files lie, and what a start alone needs: no settings of a run
NO_SETTINGS = frozenset({"dataset_name", "captions", "annotations", "data_dir", "output_dir", "gpu", "resume"})
# settings that a run may go on with others; the batch of all processes is compared instead of batch_size
FREE_SETTINGS = frozenset({"batch_size", "log_step", "eval_every", "save_steps", "samples"})


class Recipe(NamedTuple):
    """What suits a size of denoiser."""

    steps: int
    lr: float
    dropout: float


RECIPES = {
    "base": Recipe(steps=200_000, lr=1e-4, dropout=0.1),  # as published
    "small": Recipe(steps=50_000, lr=3e-4, dropout=0.1),
    "tiny": Recipe(steps=12_000, lr=3e-3, dropout=0.0),  # too small to memorise captions
}
GROUPS = {
    "captions": "What it learns from. Videos are not needed.",
    "network": "Its size, and the lengths that its retrieval model shares.",
    "training": "The optimiser, its steps and the device.",
    "output": "Where files go, and what is logged how often.",
}
_captions, _network, _training, _output = (partial(flag, group=title) for title in GROUPS)


def _by_size(name: str) -> str:
    """What the help says of a default that follows from --denoiser."""
    return ", ".join(f"{size} {getattr(recipe, name)}" for size, recipe in RECIPES.items())


@dataclass
class PretrainingConfig:
    """All settings of a pre-training."""

    dataset_name: str | None = _captions(None, "the captions of its training split; this or --captions", metavar="NAME")
    captions: str | None = _captions(None, "a text file, a caption a line", metavar="FILE")
    data_dir: str = _captions("./data", "folder that holds <Dataset>/ with annotations", metavar="DIR")
    annotations: str | None = _captions(None, "annotation file of --dataset_name=custom", metavar="FILE")
    msrvtt_train_file: str = _captions("9k", "training split of MSR-VTT", choices=("7k", "9k"))
    min_count: int = _captions(5, "words that occur less often become UNK", minimum=1)
    held_out: float = _captions(
        0.02, "share of the distinct captions that it is measured on, up to 0.5",
        minimum=0, maximum=0.5, metavar="SHARE",
    )  # fmt: skip

    denoiser: str = _network("base", "size of the network; base is that of BERT base", choices=tuple(RECIPES))
    diffusion_steps: int = _network(10, "T, steps of the diffusion", minimum=1, metavar="STEPS")
    text_len: int = _network(
        64, "L, tokens of a caption; as --diffusion_text_len of the retrieval", minimum=MIN_TEXT_LEN,
        maximum=MAX_TEXT_LEN, metavar="TOKENS",
    )  # fmt: skip
    dropout: float | None = _network(None, "dropout", minimum=0, maximum=1, metavar="SHARE", unset=_by_size("dropout"))

    steps: int | None = _training(None, "steps of training", minimum=1, metavar="STEPS", unset=_by_size("steps"))
    lr: float | None = _training(None, "learning rate", minimum=0, unset=_by_size("lr"))
    batch_size: int = _training(64, "captions of a step in each process", minimum=1, metavar="CAPTIONS")
    ema_rate: float = _training(0.9999, "decay of the moving average of the weights", minimum=0, maximum=1)
    seed: int = _training(24, "seed of everything random", minimum=0)
    gpu: str | None = _training(
        None, "index of the GPU, or cpu", metavar="INDEX", unset="the first GPU if there is one"
    )
    precision: str = _training(
        "auto", "arithmetic: auto is bf16 where the device is fast at it, else fp32", choices=("auto", "fp32", "bf16")
    )

    output_dir: str | None = _output(
        None, "folder to write", metavar="DIR", unset="Diffusion-LM/diffusion_models/<data set or file name>"
    )
    log_step: int = _output(50, "steps between log lines", minimum=1, metavar="STEPS")
    eval_every: int = _output(1000, "steps between measurements on held-out captions", minimum=1, metavar="STEPS")
    save_steps: int = _output(
        2000, "steps between checkpoints; the newest two stay, and none after the run", minimum=1, metavar="STEPS"
    )
    resume: bool = _output(
        False, "go on from the newest checkpoint in --output_dir with its settings, or begin where there is none; "
        "nothing to do for a finished run",
    )  # fmt: skip
    samples: int = _output(0, "captions to generate at the end", minimum=0, metavar="CAPTIONS")

    @classmethod
    def parse(cls, description: str) -> "PretrainingConfig":
        """Read the command line.

        :param description: what the program does, for --help.
        :raises InputError: a flag is unknown, or a value is not allowed.
        """
        given = vars(flag_parser(cls, "Diffusion-LM/train.py", description, groups=GROUPS).parse_args())
        config = cls(**given)
        config.explicit = frozenset(given)  # flags that the command line gave
        config._check()
        for name, value in RECIPES[config.denoiser]._asdict().items():
            if getattr(config, name) is None:
                setattr(config, name, value)
        return config

    def _check(self) -> None:
        for f in fields(self):
            value, least, most = getattr(self, f.name), f.metadata["minimum"], f.metadata["maximum"]
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"--{f.name}={value} is not a finite number")
            if value is not None and least is not None and value < least:
                raise InputError(f"--{f.name}={value} is too small: at least {least}")
            if value is not None and most is not None and value > most:
                raise InputError(f"--{f.name}={value} is too large: at most {most}")
        if (self.dataset_name is None) == (self.captions is None):
            raise InputError("what it learns from is --dataset_name or --captions: give one of them")
        if self.dataset_name == "custom" and self.annotations is None:
            raise InputError("--annotations is missing: the annotation file of --dataset_name=custom")

    @property
    def source(self) -> str:
        """What the captions are called."""
        return self.dataset_name or Path(str(self.captions)).stem

    @property
    def folder(self) -> Path:
        """Where the files go."""
        return Path(self.output_dir or MODELS / self.source)

    def settings(self) -> dict[str, Any]:
        """What a run keeps of its flags."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in NO_SETTINGS}
