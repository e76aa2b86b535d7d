"""Runs of Diffusion-LM/train.py that are interrupted: their checkpoints, how they stop, and how they go on."""

import hashlib
import json
import logging
import re
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffusion_lm import weights
from diffusion_lm.training import CHECKED, LossNotFinite, Training
from trainer.checkpoints import delete_old, first_whole, load_whole, newest_first, write_checkpoint
from trainer.resume import restore_random_state, take_over
from utils import distributed
from utils.device import random_state
from utils.errors import InputError, RunError
from utils.stop import StopSignal

logger = logging.getLogger(__name__)

KEEP_LAST = 2  # checkpoints: should the newest be damaged, the one before it is there
RUN = "run"  # under which training_args.json keeps the settings
_NAME = re.compile(r"checkpoint-step(\d+)\.pth")

# of the command line: what the captions tell, where files lie, and what this start alone needs
NO_SETTINGS = frozenset({"dataset_name", "captions", "annotations", "data_dir", "output_dir", "gpu", "resume"})
# settings that a run may go on with others; the batch of all processes is compared instead of batch_size
FREE_SETTINGS = frozenset({"batch_size", "log_step", "eval_every", "save_steps", "samples"})


@dataclass(frozen=True)
class EarlierRun:
    """A run that an output folder holds."""

    path: Path  # its newest checkpoint; its weights when it is finished
    settings: dict[str, Any]  # as `settings_of` gave; empty for a folder that others have published
    checkpoint: dict[str, Any] | None  # None when it is finished

    @property
    def step(self) -> int:
        """Steps done, of a run that is not finished."""
        return self.checkpoint["step"]

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.checkpoint is None


def earlier_run(args: Namespace) -> EarlierRun | None:
    """The run that --resume goes on with, None without that flag or such a run. Every process calls it.

    `args` take over its settings, but for those that the command line gives.

    :raises InputError: a flag contradicts it; or, without --resume, the folder holds a run that is not finished.
    """
    if not args.resume:
        if distributed.is_main():
            _refuse_unfinished(args.output_dir)
        return None
    run = _unfinished_run(args.output_dir) or _finished_run(args.output_dir)
    if run is not None:
        given = {word[2:].split("=")[0] for word in sys.argv[1:] if word.startswith("--")}
        take_over(args, given, run.settings.get("flags", {}), run.path, FREE_SETTINGS)
    return run


def _refuse_unfinished(folder: Path) -> None:
    checkpoints = newest_first(folder, _NAME)
    if checkpoints:
        raise InputError(
            f"--output_dir={folder} holds a run that is not finished ({checkpoints[0].name}): go on with --resume, "
            f"give another --output_dir, or delete its checkpoints"
        )


def _unfinished_run(folder: Path) -> EarlierRun | None:
    """The main process looks, the others read what it found."""
    found = first_whole(newest_first(folder, _NAME)) if distributed.is_main() else None
    path = distributed.broadcast_object(found and found[0])
    if path is None:
        return None
    checkpoint = found[1] if found else load_whole(path)
    return EarlierRun(path, checkpoint["settings"], checkpoint)


def _finished_run(folder: Path) -> EarlierRun | None:
    path = weights.find_weights(folder)
    if path is None:
        return None
    args_file = folder / weights.ARGS_FILE
    try:
        settings = dict(json.loads(args_file.read_text(encoding="utf-8"))).get(RUN, {})
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{args_file} cannot be read: {error}") from error
    return EarlierRun(path, settings, None)


def settings_of(args: Namespace, captions: Sequence[str], earlier: EarlierRun | None) -> dict[str, Any]:
    """What makes a run what it is: its flags, the batch of all processes, and its captions.

    :raises InputError: an earlier run, which is to go on, has a batch of another size or other captions.
    """
    flags = {name: value for name, value in vars(args).items() if name not in NO_SETTINGS}
    source = args.dataset_name or args.captions.stem
    digest = hashlib.sha256("\n".join(captions).encode()).hexdigest()
    settings = {
        "flags": flags,
        "batch_size": args.batch_size * distributed.size(),
        "captions": {"number": len(captions), "source": source, "sha256": digest},
    }
    if earlier is not None and earlier.settings:
        _compare(settings, earlier.settings, earlier.path)
    return settings


def _compare(settings: dict[str, Any], trained: dict[str, Any], path: Path) -> None:
    if settings["batch_size"] != trained["batch_size"]:
        size = distributed.size()
        raise InputError(
            f"--resume: a batch of the run of {path} has {trained['batch_size']} captions, but {size} processes x "
            f"--batch_size={settings['batch_size'] // size} are {settings['batch_size']}"
        )
    if settings["captions"]["sha256"] != trained["captions"]["sha256"]:
        now, before = (
            "{number} of {source}, SHA-256 {sha256:.8}…".format(**each["captions"]) for each in (settings, trained)
        )
        raise InputError(
            f"the captions ({now}) contradict the run of {path}, which has others ({before}): name those, or start a "
            f"new run"
        )


class SavedTraining:
    """A training that saves itself on its way and stops at a signal. One in each process.

    :param folder: for checkpoints; the newest ones stay until `delete_checkpoints`.
    :param save_steps: steps between them; there is one after the last step besides.
    :param settings: of the run, which go into checkpoints.
    :param earlier: the run to go on with.
    """

    def __init__(
        self,
        training: Training,
        folder: Path,
        save_steps: int,
        settings: dict[str, Any],
        earlier: EarlierRun | None = None,
    ) -> None:
        self.training, self.folder, self.save_steps, self.settings = training, folder, save_steps, settings
        self.stop = StopSignal()
        self.started = time.monotonic()
        if earlier is not None:
            self._restore(earlier.checkpoint)

    def train(self) -> float:
        """All steps that are left.

        :return: seconds since the run began, without those in which it was interrupted.
        :raises RunStopped: a signal came; the run is saved.
        :raises RunError: the loss is not finite.
        """
        try:
            with self.stop:
                for step in self.training.steps():
                    self._save_or_stop(step)
        except LossNotFinite as error:
            last = next(iter(newest_first(self.folder, _NAME)), "none was written yet")
            raise RunError(
                f"{error}; last good checkpoint: {last}; try a new run with a lower --lr or with --precision=fp32"
            ) from error
        return self._seconds()

    def delete_checkpoints(self) -> None:
        """All of them, once the weights of the run are written."""
        delete_old(self.folder, 0, _NAME)

    def _save_or_stop(self, step: int) -> None:
        stopping = distributed.any_process(self.stop.number != 0)
        if stopping or step % self.save_steps == 0 or step == self.training.settings.steps:
            self._save()
        if stopping:
            self.stop.end_run(f"step {step} of {self.training.settings.steps}", how_to_go_on())

    def _save(self) -> None:
        """Write a checkpoint, by the main process, with what is of each process; only of finite losses."""
        recent = distributed.gather_objects(self.training.read_recent())
        random_states = distributed.gather_objects(random_state(self.training.device))
        if not distributed.is_main():
            return
        checkpoint = self.training.state_dict() | {
            "recent": recent,
            "random_states": random_states,
            "settings": self.settings,
            "seconds": self._seconds(),
        }
        write_checkpoint(self.folder / f"checkpoint-step{self.training.step}.pth", checkpoint)
        delete_old(self.folder, KEEP_LAST, _NAME)

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        states, recent = checkpoint["random_states"], checkpoint["recent"]
        same = len(states) == distributed.size()
        own = recent[distributed.rank()] if same else torch.stack(recent).mean(0)
        if own.shape[-1] != len(CHECKED):
            raise InputError("--resume: an older version wrote this run, with another loss: start a new one")
        self.training.load_state_dict(checkpoint, own)
        settings, step = self.training.settings, self.training.step
        restore_random_state(states, settings.seed, step, self.training.device)
        self.started -= checkpoint["seconds"]
        logger.info("the run goes on after step %d of %d", step, settings.steps)

    def _seconds(self) -> float:
        return time.monotonic() - self.started


def how_to_go_on() -> str:
    """The command that resumes this run."""
    command = [*sys.argv, *([] if "--resume" in sys.argv else ["--resume"])]
    size = distributed.size()
    return f"go on{f', in {size} processes,' if size > 1 else ''} with: python {shlex.join(command)}"
