"""What shapes and scores a model: the flags that it is built from, and what its CLIP and its Diffusion-LM have said."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from config import Config
from config.config import REMOVED
from config.flags import flags_of, names_of
from config.model_flags import ModelFlags
from datasets.transforms import OPENAI, Preprocessing
from diffusion_lm.denoiser import DenoiserConfig
from model.other_checkpoints import not_known
from utils.errors import InputError

PARTS = ("clip_config", "preprocessing", "denoiser", "vocabulary")  # of older checkpoints, beside their "config"
SHAPE = names_of(ModelFlags, lambda declared: declared.role == "shape")
SOURCE = names_of(ModelFlags, lambda declared: declared.role == "source")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ModelFlags):
    """Settles a model but for its weights. A checkpoint keeps it."""

    clip_config: dict[str, Any]  # of transformers' CLIPConfig
    preprocessing: Preprocessing = OPENAI
    denoiser: DenoiserConfig | None = None  # and the words of TextDiffs, by token
    vocabulary: dict[str, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any], path: Path) -> Self:
        """That of a checkpoint of this project.

        :raises InputError: it has none, or its model is no more.
        """
        kept = checkpoint.get("model_config")
        if kept is None:  # an older one, which had the flags of the run instead
            run = checkpoint.get("config")
            if not isinstance(run, dict) or "clip_config" not in checkpoint:
                raise not_known(path)
            _check_recipe(run, checkpoint["state_dict"], path)
            kept = run | {name: checkpoint[name] for name in PARTS if name in checkpoint}
        if not kept.keys() >= set(SHAPE):
            raise not_known(path)
        known = {name: value for name, value in kept.items() if name in cls.__dataclass_fields__}
        sizes = known.get("denoiser")
        return cls(
            **known
            | {
                "preprocessing": Preprocessing(**known.get("preprocessing", {})),  # older ones had all OpenAI's
                "denoiser": sizes and DenoiserConfig(**sizes),
            }
        )

    def as_asked(self, config: Config, path: Path) -> Self:
        """The model as a command line wants it: scored and trained as that says, in the shape that it has.

        :param path: of its checkpoint.
        :raises InputError: a flag of its shape was given that contradicts it.
        """
        check_shape(config, {name: getattr(self, name) for name in SHAPE}, path)
        own = {*SHAPE, *SOURCE} - (config.explicit & set(SOURCE))  # a source that is given is where it lies now
        asked = {name: getattr(config, name) for name in flags_of(ModelFlags) if name not in own}
        if "sampling_steps" not in config.explicit:
            asked["sampling_steps"] = self.diffusion_steps
        if "seed" not in config.explicit:  # noise of a test is that of the evaluations of its training
            asked["seed"] = self.seed
        return replace(self, **asked)


def check_shape(config: Config, trained: Mapping[str, Any], path: Path) -> None:
    """:raises InputError: a flag on the command line contradicts the settings of a checkpoint."""
    for name in trained.keys() & config.explicit:
        if getattr(config, name) != trained[name]:
            raise InputError(
                f"{path} was trained with --{name}={trained[name]}, but --{name}={getattr(config, name)} was given: "
                f"leave the flag out or name another checkpoint"
            )


def _check_recipe(run: Mapping[str, Any], state: Mapping[str, Any], path: Path) -> None:
    """:raises InputError: a checkpoint has a text diffusion that moves the text, but not as published."""
    moves_text = any(name.startswith("text_diffusion.") for name in state)
    own_ways = any(run.get(name) not in (None, value) for name, value in REMOVED.items() if value is not None)
    if moves_text and (own_ways or run.get("recipe") != "published"):
        raise InputError(
            f"{path} was trained with a recipe of TextDiffs that has changed since: train anew, or evaluate it with "
            f"the version of this project that wrote it"
        )
