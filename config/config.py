"""The settings of a run, as train.py and test.py read them."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from config.flags import check_bounds, flag_parser, flags_of, values_of
from config.model_flags import ARCH_ALIASES, CLIP_INPUT_RES, ModelFlags
from config.run_flags import Data, Evaluation, Machine, Output, Run, Training
from utils.errors import InputError

BEFORE_THE_FLAG = {"select_on": "test"}  # what runs did that are older than a flag, where its default is another
REMOVED = {  # flags that older configurations have, and what they were for --recipe=published; None: any
    "cond_negatives": 0, "hard_share": None, "undiffused_loss_weight": 0.0, "score_fusion": 0.0, "fused_pooling": None,
    "condition": "tokens", "round_last": "yes", "patch_dropout": None, "freeze_layer_num": None,
    "sweep": None, "detect_anomaly": None, "profile": None, "frame_cache_side": None, "chunk_size": None,
}  # fmt: skip
ENTRY_POINTS = {"train": "train.py", "test": "test.py"}


@dataclass(frozen=True)
class Config(Data, ModelFlags, Training, Machine, Evaluation, Run, Output):
    """All settings of a run. `Config.parse` reads a command line; `save` and `load` keep it in config.json."""

    explicit: frozenset[str] = field(default=frozenset(), compare=False)  # flags that the command line gave

    @classmethod
    def parse(
        cls, argv: Sequence[str] | None = None, program: str = "", prog: str = "", description: str = ""
    ) -> "Config":
        """Read a command line.

        :param program: whose help it is, "train" or "test"; "" lists all flags.
        :param prog: its name, and `description` what it does, for --help.
        :raises InputError: a flag is unknown, or a value is not allowed.
        """
        parser = flag_parser(cls, program, prog or ENTRY_POINTS.get(program, ""), description)
        given = vars(parser.parse_args(sys.argv[1:] if argv is None else list(argv)))
        return cls(**given, explicit=frozenset(given)).resolved()

    def resolved(self) -> Self:
        """With what follows from other flags, where it was not given.

        :raises InputError: a value is not allowed.
        """
        check_bounds(self)
        own_side = None if self.clip_path else CLIP_INPUT_RES[self.clip_arch]  # None: that of the files
        follows = {"input_res": own_side, "sampling_steps": self.diffusion_steps}
        config = replace(
            self,
            arch=ARCH_ALIASES.get(self.arch, self.arch),
            **{name: value for name, value in follows.items() if name not in self.explicit},
        )
        if config.arch == "clip_baseline" and self.pooling_type == "transformer":
            if "pooling_type" in self.explicit:
                raise InputError("--pooling_type=transformer is --arch=clip_transformer; clip_baseline has the others")
            config = replace(config, pooling_type="avg")
        config.check()
        return config

    def of_model(self, model: ModelFlags) -> Self:
        """With the settings of a model that was built or read, which may have told what the flags do not."""
        config = replace(self, **{name: getattr(model, name) for name in flags_of(ModelFlags)})
        config.check()
        return config

    def check(self) -> None:
        """:raises InputError: two flags contradict each other, or one is missing."""
        if self.dataset_name == "custom" and self.annotations is None:
            raise InputError("--annotations is missing: the annotation file of --dataset_name=custom")
        if self.sampling_steps is not None and self.sampling_steps > self.diffusion_steps:
            raise InputError(
                f"--sampling_steps={self.sampling_steps} is more than --diffusion_steps={self.diffusion_steps}"
            )
        if self.arch != "clip_baseline":
            return
        if self.pooling_type == "topk" and not 1 <= self.k <= self.num_frames:
            raise InputError(f"--pooling_type=topk needs --k of 1 to --num_frames={self.num_frames}, not {self.k}")
        if self.pooling_type == "attention" and self.attention_temperature <= 0:
            raise InputError(f"--attention_temperature={self.attention_temperature} is too small: it divides")

    def notes(self, program: str = "") -> list[str]:
        """One line for every given flag that cannot do anything in this run of a program."""
        reasons = {name: self._why_not(name, program) for name in flags_of(self) if name in self.explicit}
        return [f"--{name} has no effect{why}" for name, why in reasons.items() if why]

    def _why_not(self, name: str, program: str) -> str:
        """Why a flag does nothing, as the end of a sentence; "" where it does something."""
        declared = flags_of(self)[name][1]
        if declared.no_effect:
            return f": {declared.no_effect}"
        if program in ENTRY_POINTS and not declared.shown_by(program):
            others = [file for other, file in ENTRY_POINTS.items() if declared.shown_by(other)]
            return f" in {ENTRY_POINTS[program]}: it is for {', '.join(others)}"
        if declared.archs is not None and self.arch not in declared.archs:
            return f" with --arch={self.arch}: it belongs to {', '.join(declared.archs)}"
        if declared.recipe not in ("", self.recipe):
            return f" without --recipe={declared.recipe}"
        if name == "select_on" and self.skip_eval:
            return " with --skip_eval: the last epoch becomes model_best.pth"
        needed, _, value = declared.needs.partition("=")
        if needed and not (getattr(self, needed) == value if value else getattr(self, needed)):
            return f" without --{declared.needs}"
        return ""

    def named(self) -> Self:
        """With a name of the run: by the clock, where it has none."""
        return replace(self, datetime=self.datetime or datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))

    @property
    def run_dir(self) -> Path:
        """Folder of the run, which has a name."""
        return Path(self.output_dir) / self.exp_name / str(self.datetime)

    @property
    def test_split(self) -> str:
        """The name of the split that is tested on."""
        return "test" if self.split == "usual" or self.dataset_name != "MovingShapes" else f"test-{self.split}"

    @property
    def dataset_dir(self) -> Path:
        """Folder of the annotations of the data set; their file for custom."""
        if self.dataset_name == "custom" and self.annotations is not None:
            return Path(self.annotations)
        return Path(self.data_dir) / self.dataset_name

    def to_dict(self) -> dict[str, Any]:
        """The flags as plain values."""
        return values_of(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """A Config of plain values, which may be older than some flags; names that no version has known are an error
        that lists them."""
        values = BEFORE_THE_FLAG | {name: value for name, value in values.items() if name not in REMOVED}
        unknown = sorted(values.keys() - flags_of(cls).keys())
        if unknown:
            raise InputError(f"configuration has unknown settings: {', '.join(unknown)}")
        return cls(**values)

    def save(self, path: Path) -> None:
        """Write config.json."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read config.json."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError("it holds no settings by name")
            return cls.from_dict(values)
        except (OSError, ValueError) as error:  # ValueError: neither UTF-8 nor JSON, or settings that are not known
            raise InputError(f"{path} is not a configuration: {error}") from error
