"""Checkpoint files: where they lie, what is in them, reading and writing, and which one a run goes on from."""

import logging
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from config import Config
from datasets.holdout import LAST_EPOCH, Selection
from datasets.video_kind import VideoKind
from diffusion_lm.weights import load_tensors, save_atomically
from model.factory import create_model, restore_model
from model.retrieval import RetrievalModel
from utils import distributed
from utils.errors import InputError

logger = logging.getLogger(__name__)

BEST = "model_best.pth"
DAMAGED = ".damaged"  # added to the name of a checkpoint that cannot be read
CHECKPOINT_NAME = re.compile(r"checkpoint-epoch(\d+)(?:-step(\d+))?\.pth")


def epoch_file(epoch: int) -> str:
    """Name of the checkpoint after an epoch, counted from 1."""
    return f"checkpoint-epoch{epoch}.pth"


def step_file(epoch: int, epoch_step: int) -> str:
    """Name of the checkpoint within an epoch, after so many steps of it."""
    return f"checkpoint-epoch{epoch}-step{epoch_step}.pth"


def save_checkpoint(
    path: Path, model: RetrievalModel, config: Config, epoch: int, step: int, training: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint whole or not at all.

    :param training: what else resuming needs: optimizer, scheduler, position, random states, metrics so far.
    :raises InputError: the folder cannot be written; the file that was there stays.
    """
    checkpoint = {
        "epoch": epoch,
        "step": step,
        "state_dict": model.state_dict(),
        "config": config.to_dict(),
        "model_config": model.model_config.to_dict(),
        **(training or {}),
    }
    write_checkpoint(path, checkpoint)


def write_checkpoint(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a file whole or not at all.

    :raises InputError: the folder cannot be written; the file that was there stays.
    """
    try:
        save_atomically(checkpoint, path)
    except OSError as error:
        raise InputError(
            f"checkpoint {path} cannot be written: {error.strerror}; older ones stay as they are"
        ) from error


class ChosenModel(NamedTuple):
    """A model and where it comes from."""

    path: Path | None  # of its checkpoint, None before training
    model: RetrievalModel
    selection: Selection  # what chose it
    videos: VideoKind | None = None  # that it was trained on, None where nothing tells


def chosen_model(config: Config) -> ChosenModel:
    """The model of --load_epoch, or without that flag the one before training.

    Several processes may call it at once.

    :raises InputError: there is no such checkpoint, or what the model needs is not there.
    """
    if config.load_epoch is None:
        with distributed.main_first():  # which may download
            return ChosenModel(None, create_model(config), Selection(None, "it is the one before training"))
    path = find_checkpoint(config)
    checkpoint = load_checkpoint(path, mapped=True)  # of which the states of the optimiser are not needed
    videos = checkpoint.get("videos")
    model = restore_model(config, checkpoint, path)
    return ChosenModel(path, model, selection_of(checkpoint, path), videos and VideoKind(**videos))


def selection_of(checkpoint: Mapping[str, Any], path: Path) -> Selection:
    """What chose a checkpoint that was read from a file."""
    if path.name != BEST:
        return Selection(None, f"--load_epoch names the checkpoint of epoch {checkpoint.get('epoch')}")
    if "selected_on" in checkpoint:
        return Selection(**checkpoint["selected_on"])
    trained = checkpoint.get("config")
    if not isinstance(trained, dict) or "skip_eval" not in trained:
        return Selection("unknown", "the checkpoint does not tell")
    if trained["skip_eval"]:
        return Selection(None, LAST_EPOCH)
    return Selection("test", "the checkpoint is older than --select_on")


def load_checkpoint(path: Path, mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint.

    :param mapped: as of `load_tensors`.
    :raises InputError: it does not exist, is cut short or is no checkpoint; names it.
    """
    checkpoint = load_tensors(path, mapped)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise InputError(f"{path} is no checkpoint: it has no state_dict")
    return checkpoint


def find_checkpoint(config: Config) -> Path:
    """The file that --load_epoch and --datetime name: N, or 0 or -1 for the best.

    A published run may lie in `<datetime>_<noclip_lr>`.
    """
    if config.datetime is None:
        raise InputError("--load_epoch needs --datetime: the folder of the run below <output_dir>/<exp_name>")
    name = BEST if config.load_epoch in (0, -1) else epoch_file(config.load_epoch)
    folder = config.run_dir
    rates = {str(config.noclip_lr), f"{config.noclip_lr:.0e}".replace("e-0", "e-")}
    candidates = [folder / name, *(folder.with_name(f"{folder.name}_{rate}") / name for rate in sorted(rates))]
    for path in candidates:
        if path.is_file():
            return path
    raise InputError(f"checkpoint {candidates[0]} does not exist{_what_there_is(folder)}")


def newest_first(folder: Path, name: re.Pattern[str] = CHECKPOINT_NAME) -> list[Path]:
    """The checkpoints of a run by the step that they were written after, the newest first; model_best.pth not.

    :param name: the pattern of their names, whose groups are numbers that tell the step.
    """
    found = ((match, path) for path in folder.glob("*.pth") if (match := name.fullmatch(path.name)))
    return [path for _, path in sorted(((_position(match), path) for match, path in found), reverse=True)]


def delete_old(folder: Path, keep_last: int | None, name: re.Pattern[str] = CHECKPOINT_NAME) -> None:
    """Delete all but the newest `keep_last` checkpoints (None: none), and what a writing that died has left."""
    for path in newest_first(folder, name)[keep_last:] if keep_last is not None else []:
        path.unlink(missing_ok=True)
    for path in folder.glob(".*.pth.*.tmp"):
        path.unlink(missing_ok=True)


def load_newest(folder: Path, name: re.Pattern[str] = CHECKPOINT_NAME) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a run that is whole: its file and what is in it; None where there is none.

    Without any, model_best.pth is taken. Damaged ones are renamed, with a warning, so that nothing reads them again.
    """
    for path in [*newest_first(folder, name), folder / BEST]:
        if not path.exists():
            continue
        try:
            return path, load_whole(path)
        except InputError as error:
            aside = path.with_name(path.name + DAMAGED)
            path.replace(aside)
            logger.warning("%s; it is set aside as %s and the one before it is used", error, aside.name)
    return None


def load_whole(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a training run and compare the checksum of every part; torch alone compares none.

    :raises InputError: it is damaged, or not of a training run.
    """
    checkpoint = load_checkpoint(path)
    try:
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if damaged:
        raise InputError(f"{path} is damaged: the checksum of {damaged} is wrong")
    if "random_states" not in checkpoint:
        raise InputError(f"{path} does not hold what training needs to go on from it")
    return checkpoint


def _position(match: re.Match[str]) -> list[float]:
    """Epoch and step in it, infinite after the whole epoch; or whatever numbers the name has."""
    return [math.inf if number is None else int(number) for number in match.groups()]


def _what_there_is(folder: Path) -> str:
    found = sorted(path.name for path in folder.glob("*.pth")) if folder.is_dir() else []
    return f"; the folder holds {', '.join(found)}" if found else ""
