"""Checkpoint files: where they lie, what is in them, reading and writing."""

from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from config import Config
from diffusion_lm.errors import InputError
from diffusion_lm.weights import load_tensors, save_atomically
from model.factory import description
from model.xpool import XPool

BEST = "model_best.pth"


def epoch_file(epoch: int) -> str:
    """Name of the checkpoint after an epoch, counted from 1."""
    return f"checkpoint-epoch{epoch}.pth"


def save_checkpoint(
    path: Path,
    model: XPool,
    config: Config,
    epoch: int,
    step: int,
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | None = None,
    metrics: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint whole or not at all.

    :raises InputError: the folder cannot be written; the file that was there stays.
    """
    checkpoint = {
        "epoch": epoch,
        "step": step,
        "state_dict": model.state_dict(),
        "config": config.to_dict(),
        "metrics": metrics,
        "optimizer": optimizer and optimizer.state_dict(),
        "scheduler": scheduler and scheduler.state_dict(),
        **description(model),
    }
    try:
        save_atomically(checkpoint, path)
    except (OSError, RuntimeError) as error:
        raise InputError(f"checkpoint {path} cannot be written: {error}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    :raises InputError: it does not exist, is cut short or is no checkpoint; names it.
    """
    checkpoint = load_tensors(path)
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


def _what_there_is(folder: Path) -> str:
    found = sorted(path.name for path in folder.glob("*.pth")) if folder.is_dir() else []
    return f"; the folder holds {', '.join(found)}" if found else ""
