"""--resume: which run goes on, from which checkpoint, with which settings."""

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

from config import Config
from config.config import RECIPES
from diffusion_lm.errors import InputError
from trainer import distributed
from trainer.checkpoints import load_newest, load_whole
from trainer.run_folder import CONFIG_FILE

logger = logging.getLogger(__name__)

LATEST = "latest"  # what --resume alone means

# settings of the machine, of places and of what is told: a run may go on with others. The batch of all processes is
# compared instead of batch_size and grad_accum.
FREE_SETTINGS = frozenset({
    "videos_dir", "data_dir", "num_workers", "frame_cache", "frame_cache_gb", "diffusion_lm", "batch_size",
    "grad_accum", "gpu", "compile", "gradient_checkpointing", "detect_anomaly", "profile", "resume", "batch_size_split",
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
    _take_over(config, checkpoint["config"], path)
    folder = path.resolve().parent
    config.datetime, config.exp_name, config.output_dir = folder.name, folder.parent.name, str(folder.parent.parent)
    return path, checkpoint


def _newest_run(experiment: Path) -> Path | None:
    """The run of an experiment that was written to last."""
    runs = [config.parent for config in experiment.glob(f"*/{CONFIG_FILE}")]
    return max(runs, key=lambda run: run.stat().st_mtime, default=None)  # checkpoints are renamed into it


def _take_over(config: Config, trained: dict[str, Any], path: Path) -> None:
    trained = RECIPES["published"] | trained  # which runs of before these flags were
    Config.from_dict(trained)  # complains about names that are not known
    for name in (field.name for field in fields(config)):
        if name not in trained:
            continue
        given = getattr(config, name)
        if name in config.explicit:
            if name not in FREE_SETTINGS and given != trained[name]:
                raise InputError(
                    f"--{name}={given} contradicts the run of {path}, which has {trained[name]}: leave the flag out, "
                    f"or start a new run"
                )
        elif name != "resume":
            setattr(config, name, trained[name])


def how_to_go_on(folder: Path) -> str:
    """The command that resumes a run."""
    return f"go on with: python train.py --resume={folder}"
