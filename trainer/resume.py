"""--resume: which run goes on, from which checkpoint, with which settings."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from config import Config
from config.flags import flags_of, names_of
from trainer.checkpoints import BEST, load_newest, load_whole, newest_first
from trainer.run_folder import CONFIG_FILE
from utils import distributed
from utils.device import seed_process, set_random_state
from utils.errors import InputError

logger = logging.getLogger(__name__)

LATEST = "latest"  # what --resume alone means
Resumed = tuple[Config, Path | None, dict[str, Any] | None]  # settings of the run, its checkpoint and what is in it


def resume_together(config: Config) -> Resumed:
    """`resume` in every process of a run: the main one looks, the others read what it found."""
    path = checkpoint = None
    if config.resume and distributed.is_main():
        config, path, checkpoint = resume(config)
    path, name = distributed.broadcast_object((path, config.datetime))
    config = replace(config, datetime=name)
    if path is None or distributed.is_main():
        return config, path, checkpoint
    return resume(replace(config, resume=str(path)))


def resume(config: Config) -> Resumed:
    """The checkpoint that --resume means: its file, what is in it, and the settings of its run, but for what the
    command line gives.

    None where the run has no checkpoint yet: it starts from the beginning, so that a job may always give --resume.

    :raises InputError: there is no such checkpoint, or a flag contradicts the run.
    """
    if config.resume == LATEST:
        experiment = Path(config.output_dir) / config.exp_name
        folder = config.run_dir if config.datetime else _newest_run(experiment)
        found = folder and load_newest(folder)
        if not found:
            logger.info("--resume: %s has no checkpoint yet, it starts from the beginning", folder or experiment)
            return replace(config, datetime=folder and folder.name), None, None
    else:
        place = Path(config.resume)
        found = load_newest(place) if place.is_dir() else (place, load_whole(place))
        if not found:
            raise InputError(f"--resume={place}: the folder holds no checkpoint")
    path, checkpoint = found
    trained = Config.from_dict(checkpoint["config"]).to_dict()
    config, folder = go_on_as(config, trained, path), path.resolve().parent
    run = {"datetime": folder.name, "exp_name": folder.parent.name, "output_dir": str(folder.parent.parent)}
    return replace(config, **run, explicit=config.explicit | trained.keys()), path, checkpoint


def _newest_run(experiment: Path) -> Path | None:
    """The run of an experiment that was written to last."""
    runs = [config.parent for config in experiment.glob(f"*/{CONFIG_FILE}")]
    return max(runs, key=lambda run: run.stat().st_mtime, default=None)  # checkpoints are renamed into it


def go_on_as(config: Any, trained: Mapping[str, Any], path: Path) -> Any:
    """The settings of a run that goes on, with the values that it was trained with, but for those that are given.

    :param config: of flags, with `explicit`, the names of those on the command line.
    :param path: of the run's checkpoint.
    :raises InputError: a flag is given that differs, and its role says that a run keeps it.
    """
    flags = flags_of(config)
    for name in trained.keys() & config.explicit:
        if flags[name][1].what_follows.agrees and getattr(config, name) != trained[name]:
            raise InputError(
                f"--{name}={getattr(config, name)} contradicts the run of {path}, which has {trained[name]}: leave the "
                f"flag out, or start a new run"
            )
    return replace(config, **{name: trained[name] for name in (trained.keys() & flags.keys()) - config.explicit})


def restore_random_state(states: Sequence[Mapping[str, Any]], seed: int, step: int, device: torch.device) -> None:
    """Let this process draw the random numbers after `step` that the run would have drawn.

    :param states: of its processes, by rank. With another number of processes dropout draws others.
    """
    rank = distributed.rank()
    if len(states) == distributed.size():
        set_random_state(states[rank], device)
    else:
        logger.info("the run had %d processes: dropout draws other numbers from here on", len(states))
        seed_process(seed, rank, step)


def how_to_go_on(folder: Path) -> str:
    """The command that resumes a run."""
    return f"go on with: python train.py --resume={folder}"


def how_to_test(config: Config) -> str:
    """The command that evaluates the best checkpoint of a run as the run itself would."""
    of_test = names_of(
        config, lambda declared: declared.shown_by("test") and declared.role not in ("shape", "training")
    )
    defaults = {name: f.default for name, (f, _) in flags_of(config).items()} | {
        "sampling_steps": config.diffusion_steps
    }
    given = {name: value for name in of_test if (value := getattr(config, name)) != defaults[name]}
    flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]
    return f"python test.py {shlex.join([*flags, '--load_epoch=0'])}"


def what_is_kept(folder: Path) -> str:
    """What a run that bad input has ended leaves, and how to go on."""
    if not folder.is_dir():
        return f"{folder} is gone: somebody has deleted or moved it"
    checkpoint = next((path.name for path in [*newest_first(folder), folder / BEST] if path.exists()), None)
    if checkpoint is None:
        return (
            f"the log and the metrics of the run stay in {folder}, it had no checkpoint yet: once that is mended, give "
            f"the same command with --datetime={folder.name} --resume"
        )
    return f"the run is kept up to {checkpoint}; once that is mended, {how_to_go_on(folder)}"
