"""--resume: which run goes on, from which checkpoint, with which settings."""

import logging
import shlex
from collections.abc import Container, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from config import Config
from config.config import up_to_date
from trainer.checkpoints import BEST, load_newest, load_whole, newest_first
from trainer.run_folder import CONFIG_FILE
from utils import distributed
from utils.device import seed_process, set_random_state
from utils.errors import InputError

logger = logging.getLogger(__name__)

LATEST = "latest"  # what --resume alone means

# settings of the machine, of places and of what is told: a run may go on with others. The batch of all processes is
# compared instead of batch_size and grad_accum.
FREE_SETTINGS = frozenset({
    "videos_dir", "data_dir", "num_workers", "frame_cache", "frame_cache_gb", "diffusion_lm", "batch_size",
    "grad_accum", "gpu", "compile", "gradient_checkpointing", "resume", "batch_size_split",
    "chunk_size", "save_memory_mode", "exp_name", "output_dir", "datetime", "save_every", "save_steps", "keep_last",
    "log_step", "no_tensorboard", "tb_log_dir", "noloss_record", "output_json", "load_epoch", "DSL",
})  # fmt: skip


def resume_together(config: Config) -> tuple[Path | None, dict[str, Any] | None]:
    """`resume` in every process of a run: the main one looks, the others read what it found. Gives the run its name."""
    path = checkpoint = None
    if config.resume and distributed.is_main():
        path, checkpoint = resume(config)
    path, name = distributed.broadcast_object((path, config.run_dir.name))
    if distributed.is_main():
        return path, checkpoint
    config.datetime = name
    if path is None:
        return None, None
    config.resume = str(path)
    return resume(config)


def resume(config: Config) -> tuple[Path | None, dict[str, Any] | None]:
    """The checkpoint that --resume means: its file and what is in it. `config` becomes that of the run, but for what
    the command line gives.

    None where the run has no checkpoint yet: it starts from the beginning, so that a job may always give --resume.

    :raises InputError: there is no such checkpoint, or a flag contradicts the run.
    """
    if config.resume == LATEST:
        folder = config.run_dir if config.datetime else _newest_run(Path(config.output_dir) / config.exp_name)
        found = folder and load_newest(folder)
        if not found:
            config.datetime = folder.name if folder else config.run_dir.name
            logger.info("--resume: %s has no checkpoint yet, it starts from the beginning", config.run_dir)
            return None, None
    else:
        place = Path(config.resume)
        found = load_newest(place) if place.is_dir() else (place, load_whole(place))
        if not found:
            raise InputError(f"--resume={place}: the folder holds no checkpoint")
    path, checkpoint = found
    trained = up_to_date(checkpoint["config"])
    Config.from_dict(trained)  # complains about names that are not known
    take_over(config, config.explicit | {"resume"}, trained, path, FREE_SETTINGS)
    folder = path.resolve().parent
    config.datetime, config.exp_name, config.output_dir = folder.name, folder.parent.name, str(folder.parent.parent)
    return path, checkpoint


def _newest_run(experiment: Path) -> Path | None:
    """The run of an experiment that was written to last."""
    runs = [config.parent for config in experiment.glob(f"*/{CONFIG_FILE}")]
    return max(runs, key=lambda run: run.stat().st_mtime, default=None)  # checkpoints are renamed into it


def take_over(
    settings: object, given: Container[str], trained: Mapping[str, Any], path: Path, free: Container[str]
) -> None:
    """Give settings the values that the run of `path` was trained with, but for those that the command line gives.

    :param settings: an object with an attribute for each setting.
    :param given: names of the flags on the command line.
    :param free: those with which the run may go on although they differ.
    :raises InputError: another flag differs.
    """
    for name, value in trained.items():
        if name not in given:
            setattr(settings, name, value)
        elif name not in free and getattr(settings, name) != value:
            raise InputError(
                f"--{name}={getattr(settings, name)} contradicts the run of {path}, which has {value}: leave the flag "
                f"out, or start a new run"
            )


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


TEST_FLAGS = (
    "dataset_name", "annotations", "data_dir", "videos_dir", "split", "allow_missing", "output_dir", "exp_name",
    "batch_size", "num_workers", "frame_cache", "frame_cache_side", "gpu", "precision", "seed", "sampler",
    "sampling_steps", "rerank_topk", "metric", "DSL", "output_json",
)  # fmt: skip


def how_to_test(config: Config) -> str:
    """The command that evaluates the best checkpoint of a run as the run itself would."""
    defaults = {f.name: f.default for f in fields(Config)} | {"sampling_steps": config.diffusion_steps}
    given = {name: value for name in TEST_FLAGS if (value := getattr(config, name)) != defaults[name]}
    flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]
    return f"python test.py {shlex.join([*flags, f'--datetime={config.run_dir.name}', '--load_epoch=0'])}"


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
