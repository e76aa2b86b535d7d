"""Published checkpoints: which family a file belongs to, its names here and back, and the sizes that it shows.

A family has one table of renames: published prefix -> ours; the first row that fits wins, other names are the same.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datasets.transforms import OPENAI
from diffusion_lm.weights import without_wrappers
from model.clip import CLIP_CONFIGS
from utils.errors import InputError

if TYPE_CHECKING:
    from model.model_config import ModelConfig

NAMES_SHOWN = 40  # of an error
ROUNDING_TABLE = "text_diffusion.rounding_table"  # random_emb.torch of the Diffusion-LM folder; no checkpoint holds it
STUDENT = "textdiffs.diffusion.run_diffusion.student_model."
TEACHER = "textdiffs.diffusion.run_diffusion.teacher_model."


@dataclass(frozen=True)
class Family:
    """The checkpoints of one project."""

    name: str
    arch: str
    marker: str  # names begin so in this family, and not in those behind it in FAMILIES
    renames: tuple[tuple[str, str], ...]
    unread: Mapping[
        str, Callable[[Mapping[str, Tensor]], Tensor]
    ]  # tensors that nothing computes with: how to make one
    frames: str | None = None  # a weight (..., F)


def _positions(table: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """0, 1, ... as many as rows of a table of positions, (1, rows)."""
    return lambda state: torch.arange(len(state[table]))[None]


CLIP_POSITION_IDS = {
    f"clip.{part}.embeddings.position_ids": _positions(f"clip.{part}.embeddings.position_embedding.weight")
    for part in ("text_model", "vision_model")
}
TEXTDIFFS = Family(
    name="TextDiffs",
    arch="clip_stochastic",
    marker="textdiffs.",
    renames=(
        (STUDENT, "text_diffusion.student."),
        (TEACHER, "text_diffusion.teacher."),
        ("textdiffs.diffusion.", "text_diffusion."),
    ),
    unread={
        **CLIP_POSITION_IDS,
        **{f"{part}position_ids": _positions(f"{part}position_embeddings.weight") for part in (STUDENT, TEACHER)},
        "textdiffs.diffusion.diff_proj.weight": lambda state: torch.zeros(
            len(state["textdiffs.diffusion.linear_sims.weight"]), state[f"{STUDENT}sims_linear.weight"].shape[1]
        ),
        "textdiffs.diffusion.diff_proj.bias": lambda state: torch.zeros(
            len(state["textdiffs.diffusion.linear_sims.weight"])
        ),
    },
    frames=f"{STUDENT}sims_linear.weight",
)
TMASS = Family(
    name="T-MASS",
    arch="clip_tmass",
    marker="stochastic.",
    renames=(),
    unread=CLIP_POSITION_IDS,
    frames="stochastic.std_branch.linear_proj.weight",
)
XPOOL = Family("X-Pool", "clip_transformer", "pool_frames.", renames=(), unread=CLIP_POSITION_IDS)
FAMILIES = (TEXTDIFFS, TMASS, XPOOL)


def family_of(checkpoint: Mapping[str, Any]) -> Family | None:
    """The family of a checkpoint; None for one of this project and for files of others."""
    if checkpoint.keys() & {"model_config", "clip_config"}:  # the second in older ones
        return None
    names = without_wrappers(checkpoint["state_dict"]).keys()
    if not any(name.startswith("clip.") for name in names):
        return None
    return next((family for family in FAMILIES if any(name.startswith(family.marker) for name in names)), None)


def rename_published(state: Mapping[str, Tensor], family: Family = TEXTDIFFS) -> dict[str, Tensor]:
    """Published names -> ours, without the tensors that nothing computes with."""
    rows = family.renames
    return {_renamed(name, rows): tensor for name, tensor in state.items() if name not in family.unread}


def to_published(state: Mapping[str, Tensor], family: Family = TEXTDIFFS) -> dict[str, Tensor]:
    """Our names -> published ones, without what only a published file holds."""
    rows = tuple((ours, theirs) for theirs, ours in family.renames)
    return {_renamed(name, rows): tensor for name, tensor in state.items() if name != ROUNDING_TABLE}


def not_known(path: Path) -> InputError:
    """The error of a checkpoint that is neither ours nor of a family."""
    names = ", ".join(family.name for family in FAMILIES)
    return InputError(f"{path} is neither a checkpoint of this project nor a published one of {names}")


def published_checkpoint(checkpoint: Mapping[str, Any], config: "ModelConfig", path: Path) -> dict[str, Any]:
    """A checkpoint of this project as a published one.

    Tensors that nothing computes with are those of the published file that it comes from, if it comes from one.

    :param config: of its model.
    :raises InputError: no family publishes its arch.
    """
    family = next((family for family in FAMILIES if family.arch == config.arch), None)
    if family is None:
        raise InputError(f"{path}: nobody publishes checkpoints of --arch={config.arch}")
    if family is TEXTDIFFS and config.recipe != "published":
        raise InputError(f"{path}: nobody publishes checkpoints of --recipe={config.recipe}")
    _check_form(checkpoint["state_dict"], config, family, path)
    state = to_published(checkpoint["state_dict"], family)
    unread = checkpoint.get("published")
    if unread is None:
        try:
            unread = {name: make(state) for name, make in family.unread.items()}
        except KeyError as error:
            raise InputError(f"{path} lacks {error}") from error
    return {"epoch": checkpoint.get("epoch", 0), "state_dict": state | unread}


def _check_form(state: Mapping[str, Tensor], config: "ModelConfig", family: Family, path: Path) -> None:
    """:raises InputError: a published file, which holds tensors alone, would be taken for another CLIP."""
    settings = shown_settings(state, family, path)
    if config.preprocessing != OPENAI:
        raise InputError(
            f"{path}: its CLIP has a preprocessing of its own, for which published checkpoints have no place"
        )
    published = CLIP_CONFIGS[settings["clip_arch"]]
    for part in ("text_config", "vision_config"):
        for name in ("hidden_act", "num_attention_heads"):
            own, usual = config.clip_config[part][name], published[part][name]
            if own != usual:
                raise InputError(
                    f"{path}: its CLIP has {name}={own}, but published checkpoints of this size mean {usual} and "
                    "have no place for another"
                )


def shown_settings(state: Mapping[str, Tensor], family: Family, path: Path) -> dict[str, Any]:
    """The settings that the sizes of tensors show, by flag. Tensors that are not there show nothing.

    :raises InputError: no CLIP that is known here has these sizes.
    """
    settings: dict[str, Any] = {"arch": family.arch}
    if family is TEXTDIFFS:
        settings["recipe"] = "published"
    patches = state.get("clip.vision_model.embeddings.patch_embedding.weight")
    if patches is not None:
        settings["clip_arch"] = _clip_arch(patches, path)
    if family.frames in state:
        settings["num_frames"] = state[family.frames].shape[-1]
    if (tokens := state.get("textdiffs.diffusion.linear_sims_sum.weight")) is not None:
        settings["diffusion_text_len"] = tokens.shape[-1]
    return settings


def check_names(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], family: Family, path: Path) -> None:
    """Compare names and sizes with those of a model of the same settings.

    :param state: published names.
    :param expected: our names.
    :raises InputError: lists what is missing, left over or of another size, as the file calls it.
    """
    wanted = to_published(expected, family)
    problems = {
        "missing": sorted(wanted.keys() - state.keys()),
        "left over": sorted(state.keys() - wanted.keys() - family.unread.keys()),
        "of another size": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in state and state[name].shape != tensor.shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{what}: {_listed(names)}" for what, names in problems.items() if names)
        raise InputError(f"{path} does not fit a published {family.name} checkpoint; {listed}")


def _renamed(name: str, rows: Iterable[tuple[str, str]]) -> str:
    for old, new in rows:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _clip_arch(patches: Tensor, path: Path) -> str:
    """--clip_arch by the patch embedding (width, 3, patch, patch)."""
    for clip_arch, config in CLIP_CONFIGS.items():
        vision = config["vision_config"]
        if tuple(patches.shape) == (vision["hidden_size"], 3, vision["patch_size"], vision["patch_size"]):
            return clip_arch
    raise InputError(
        f"{path} holds a CLIP of width {patches.shape[0]} with patches of {patches.shape[-1]} pixels: "
        f"none of {', '.join(CLIP_CONFIGS)}"
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
