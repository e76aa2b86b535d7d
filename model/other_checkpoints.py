"""Checkpoints of other projects: which family a file belongs to, its names here, and the sizes that it shows.

A family has one table of renames: their prefix -> ours; the first row that fits wins, other names are the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion_lm.weights import without_wrappers
from model.pretrained import CLIP_CONFIGS
from utils.errors import InputError

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
    unread: frozenset[str]  # tensors that nothing computes with
    frames: str | None = None  # a weight (..., F)


CLIP_POSITION_IDS = frozenset({
    "clip.text_model.embeddings.position_ids", "clip.vision_model.embeddings.position_ids",
})  # fmt: skip
TEXTDIFFS = Family(
    name="TextDiffs",
    arch="clip_stochastic",
    marker="textdiffs.",
    renames=(
        (STUDENT, "text_diffusion.student."),
        (TEACHER, "text_diffusion.teacher."),
        ("textdiffs.diffusion.", "text_diffusion."),
    ),
    unread=CLIP_POSITION_IDS
    | {f"{STUDENT}position_ids", f"{TEACHER}position_ids"}
    | {"textdiffs.diffusion.diff_proj.weight", "textdiffs.diffusion.diff_proj.bias"},
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


def to_our_names(state: Mapping[str, Tensor], family: Family = TEXTDIFFS) -> dict[str, Tensor]:
    """Their names -> ours, without the tensors that nothing computes with."""
    rows = family.renames
    return {_renamed(name, rows): tensor for name, tensor in state.items() if name not in family.unread}


def to_their_names(state: Mapping[str, Tensor], family: Family = TEXTDIFFS) -> dict[str, Tensor]:
    """Our names -> theirs, without what only their files hold."""
    rows = tuple((ours, theirs) for theirs, ours in family.renames)
    return {_renamed(name, rows): tensor for name, tensor in state.items() if name != ROUNDING_TABLE}


def not_known(path: Path) -> InputError:
    """The error of a checkpoint that is neither ours nor of a family."""
    names = ", ".join(family.name for family in FAMILIES)
    return InputError(f"{path} is neither a checkpoint of this project nor a published one of {names}")


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
    if family.frames is not None and family.frames in state:
        settings["num_frames"] = state[family.frames].shape[-1]
    if (tokens := state.get("textdiffs.diffusion.linear_sims_sum.weight")) is not None:
        settings["diffusion_text_len"] = tokens.shape[-1]
    return settings


def check_names(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], family: Family, path: Path) -> None:
    """Compare names and sizes with those of a model of the same settings.

    :param state: by their names.
    :param expected: our names.
    :raises InputError: lists what is missing, left over or of another size, as the file calls it.
    """
    wanted = to_their_names(expected, family)
    problems = {
        "missing": sorted(wanted.keys() - state.keys()),
        "left over": sorted(state.keys() - wanted.keys() - family.unread),
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
