"""The flags of Diffusion-LM/train.py."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from config.flags import check_bounds, flag, flag_parser, flags_of, group
from utils.errors import InputError

MODELS = Path(__file__).resolve().parent.parent / "Diffusion-LM" / "diffusion_models"
MIN_TEXT_LEN, MAX_TEXT_LEN = 3, 512  # START, a word, END; the positions of a denoiser


class SizeDefaults(NamedTuple):
    """What suits a size of denoiser."""

    steps: int
    lr: float
    dropout: float


BY_SIZE = {
    "base": SizeDefaults(steps=200_000, lr=1e-4, dropout=0.1),  # as published
    "small": SizeDefaults(steps=50_000, lr=3e-4, dropout=0.1),
    "tiny": SizeDefaults(steps=12_000, lr=3e-3, dropout=0.0),  # too small to memorise captions
}


def _by_size(name: str) -> str:
    """What the help says of a default that follows from --denoiser."""
    return ", ".join(f"{size} {getattr(defaults, name)}" for size, defaults in BY_SIZE.items())


# A flag takes the lines that its words need.
# fmt: off


@group("captions", "What it learns from. Videos are not needed.", role="files")
@dataclass(frozen=True)
class Captions:
    dataset_name: str | None = flag(None, "the captions of its training split; this or --captions", metavar="NAME")
    captions: str | None = flag(None, "a text file, a caption a line", metavar="FILE")
    data_dir: str = flag("./data", "folder that holds <Dataset>/ with annotations", metavar="DIR")
    annotations: str | None = flag(None, "annotation file of --dataset_name=custom", metavar="FILE")
    msrvtt_train_file: str = flag("9k", "training split of MSR-VTT", role="data", choices=("7k", "9k"))
    min_count: int = flag(5, "words that occur less often become UNK", role="data", minimum=1)
    held_out: float = flag(0.02, "share of the distinct captions that it is measured on, up to 0.5", role="data",
        minimum=0, maximum=0.5, metavar="SHARE")


@group("network", "Its size, and the lengths that its retrieval model shares.", role="shape")
@dataclass(frozen=True)
class Network:
    denoiser: str = flag("base", "size of the network; base is that of BERT base", choices=tuple(BY_SIZE))
    diffusion_steps: int = flag(10, "T, steps of the diffusion", minimum=1, metavar="STEPS")
    text_len: int = flag(64, "L, tokens of a caption; as --diffusion_text_len of the retrieval", minimum=MIN_TEXT_LEN,
        maximum=MAX_TEXT_LEN, metavar="TOKENS")
    dropout: float | None = flag(None, "dropout", minimum=0, maximum=1, metavar="SHARE", unset=_by_size("dropout"))


@group("training", "The optimiser, its steps and the device.", role="training")
@dataclass(frozen=True)
class Optimiser:
    steps: int | None = flag(None, "steps of training", minimum=1, metavar="STEPS", unset=_by_size("steps"))
    lr: float | None = flag(None, "learning rate", minimum=0, unset=_by_size("lr"))
    batch_size: int = flag(64, "captions of a step in each process", role="running", minimum=1, metavar="CAPTIONS")
    ema_rate: float = flag(0.9999, "decay of the moving average of the weights", minimum=0, maximum=1)
    seed: int = flag(24, "seed of everything random", minimum=0)
    gpu: str | None = flag(None, "index of the GPU, or cpu", role="files", metavar="INDEX",
        unset="the first GPU if there is one")
    precision: str = flag("auto", "arithmetic: auto is bf16 where the device is fast at it, else fp32",
        choices=("auto", "fp32", "bf16"))


@group("output", "Where files go, and what is logged how often.", role="running")
@dataclass(frozen=True)
class Written:
    output_dir: str | None = flag(None, "folder to write", role="files", metavar="DIR",
        unset="Diffusion-LM/diffusion_models/<data set or file name>")
    log_step: int = flag(50, "steps between log lines", minimum=1, metavar="STEPS")
    eval_every: int = flag(1000, "steps between measurements on held-out captions", minimum=1, metavar="STEPS")
    save_steps: int = flag(2000, "steps between checkpoints; the newest two stay, and none after the run", minimum=1,
        metavar="STEPS")
    resume: bool = flag(False, "go on from the newest checkpoint in --output_dir with its settings, or begin where"
        " there is none; nothing to do for a finished run", role="files")
    samples: int = flag(0, "captions to generate at the end", minimum=0, metavar="CAPTIONS")


# fmt: on
@dataclass(frozen=True)
class PretrainingConfig(Captions, Network, Optimiser, Written):
    """All settings of a pre-training."""

    explicit: frozenset[str] = field(default=frozenset(), compare=False)  # flags that the command line gave

    @classmethod
    def parse(cls, description: str) -> "PretrainingConfig":
        """Read the command line.

        :param description: what the program does, for --help.
        :raises InputError: a flag is unknown, or a value is not allowed.
        """
        given = vars(flag_parser(cls, prog="Diffusion-LM/train.py", description=description).parse_args())
        config = cls(**given, explicit=frozenset(given))
        check_bounds(config)
        if (config.dataset_name is None) == (config.captions is None):
            raise InputError("what it learns from is --dataset_name or --captions: give one of them")
        if config.dataset_name == "custom" and config.annotations is None:
            raise InputError("--annotations is missing: the annotation file of --dataset_name=custom")
        defaults = BY_SIZE[config.denoiser]._asdict().items()
        return replace(config, **{name: value for name, value in defaults if getattr(config, name) is None})

    @property
    def source(self) -> str:
        """What the captions are called."""
        return self.dataset_name or Path(str(self.captions)).stem

    @property
    def folder(self) -> Path:
        """Where the files go."""
        return Path(self.output_dir or MODELS / self.source)

    def settings(self) -> dict[str, Any]:
        """What a run keeps of its flags: not what the captions tell, where files lie, and what a start alone needs."""
        return {name: getattr(self, name) for name, (_, declared) in flags_of(self).items() if declared.role != "files"}
