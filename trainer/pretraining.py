"""Pre-training of a Diffusion-LM on captions: its loop, its checkpoints and how an interrupted run goes on."""

import hashlib
import json
import logging
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from config.pretraining import PretrainingConfig
from diffusion_lm import weights
from diffusion_lm.denoiser import Denoiser
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from diffusion_lm.losses import EndToEndLoss
from diffusion_lm.training import (
    EndlessBatches,
    ExponentialAverage,
    HeldOut,
    Loss,
    draw_noise,
    evaluate,
    make_optimizer,
)
from trainer.checkpoints import delete_old, load_newest, load_whole, newest_first, write_checkpoint
from trainer.loop import Loop
from trainer.resume import go_on_as
from trainer.run_folder import MetricsWriter
from utils import distributed
from utils.device import autocast
from utils.errors import InputError
from utils.progress import progress

logger = logging.getLogger(__name__)

KEEP_LAST = 2  # checkpoints: should the newest be damaged, the one before it is there
RUN = "run"  # under which training_args.json keeps the settings


class EarlierRun(NamedTuple):
    """A run that an output folder holds."""

    path: Path  # its newest checkpoint; its weights when it is finished
    settings: dict[str, Any]  # as `settings_of` gave; empty for a folder that others have published
    checkpoint: dict[str, Any] | None  # None when it is finished


class Pretraining(Loop):
    """The training of a denoiser, in place. Every process draws the whole batch and its noise, and computes the loss of
    its rows; the main one evaluates.

    `average.module` is the denoiser of averaged weights, `held_out` its last figures.

    :param word_ids: training captions (N, L).
    :param held_out_ids: captions (M, L) to evaluate the averaged weights on.
    :param settings: what `settings_of` gave, which checkpoints keep.
    :param writer: of the figures; None in all processes but the main one.
    :param resumed: the checkpoint to go on from.
    """

    checkpoint_name = re.compile(r"checkpoint-step(\d+)\.pth")
    remedy = "lower --lr, or give --precision=fp32"

    def __init__(
        self,
        denoiser: Denoiser,
        diffusion: GaussianDiffusion,
        word_ids: Tensor,
        held_out_ids: Tensor,
        config: PretrainingConfig,
        dtype: torch.dtype,
        settings: dict[str, Any],
        writer: MetricsWriter | None,
        resumed: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(denoiser, config.folder, diffusion.betas.device, dtype, config.seed)
        self.diffusion, self.config, self.settings, self.writer = diffusion, config, settings, writer
        self.word_ids, self.held_out_ids = word_ids, held_out_ids
        rank, own = distributed.rank(), config.batch_size
        self.rows = slice(rank * own, (rank + 1) * own)
        torch.manual_seed(config.seed + rank)  # dropout
        self.generator = torch.Generator().manual_seed(config.seed)
        self.batches = EndlessBatches(len(word_ids), own * distributed.size(), self.generator)
        self.loss_of = distributed.synchronised(Loss(denoiser, diffusion))
        self.optimizer, self.scheduler = make_optimizer(denoiser, config.lr, config.steps)
        self.average = ExponentialAverage(denoiser, config.ema_rate)
        self.names = ["loss", *EndToEndLoss._fields[1:], "gradient_norm"]
        self.held_out: HeldOut | None = None
        self.started = time.monotonic()
        if resumed is not None:
            self._restore(resumed)

    def train(self) -> float:
        """All steps that are left.

        :return: seconds since the run began, without those in which it was interrupted.
        :raises RunStopped: a signal came; the run is saved.
        :raises RunError: the loss is not finite.
        """
        config, is_main = self.config, distributed.is_main()
        left = self._until_the_end(iter(range(self.step, config.steps)))
        with self.stop:
            for _ in progress(left, "training", config.steps, "steps", shown=is_main, done=self.step):
                self._train_step()
                ends = self.step == config.steps
                if ends or self.step % config.log_step == 0:
                    self._record_losses()
                if is_main and (ends or self.step % config.eval_every == 0):
                    self._evaluate()
                if ends or self.step % config.save_steps == 0:
                    self._save_step()
        return self._seconds()

    def _train_step(self) -> None:
        self.model.train()
        ids = self.word_ids[next(self.batches)]
        t = torch.randint(self.diffusion.num_steps, (len(ids),), generator=self.generator)
        noise = draw_noise(ids, self.model.config.channels, self.generator)
        with autocast(self.device, self.dtype):
            losses = self.loss_of(ids[self.rows], t[self.rows], noise[:, self.rows])
        self._descend(dict(zip(self.names[:-1], losses, strict=True)))
        self.average.update_parameters(self.model)

    def _record_losses(self) -> None:
        means = distributed.mean(self._read_recent().mean(0)).tolist()
        self.recent.clear()
        terms = dict(zip(EndToEndLoss._fields, means, strict=False))  # without the gradient
        self._write({"lr": self.scheduler.get_last_lr()[0], "train": terms})

    def _evaluate(self) -> None:
        self._read_recent()
        self.held_out = evaluate(self.average.module, self.diffusion, self.held_out_ids, self.seed)
        self._write({"held_out": asdict(self.held_out)})

    def _write(self, figures: dict[str, Any]) -> None:
        if self.writer is not None:
            self.writer.write(self.step, None, figures)
            logger.info("%s", json.dumps({"step": self.step} | figures))

    def _save_step(self) -> None:
        recent = distributed.gather_objects(self._read_recent())
        training = self._training_state()
        if training is None:
            return
        training |= {
            "step": self.step,
            "generator": self.generator.get_state(),
            "rest_of_epoch": self.batches.rest.clone(),  # a part of a tensor would be written with all of it
            "held_out": self.held_out and asdict(self.held_out),
            "recent": recent,
            "settings": self.settings,
            "seconds": self._seconds(),
        }
        write_checkpoint(self.folder / f"checkpoint-step{self.step}.pth", training)
        delete_old(self.folder, KEEP_LAST, self.checkpoint_name)

    def _parts(self) -> dict[str, Any]:
        return {"state_dict": self.model, "average": self.average} | super()._parts()

    def _restore(self, checkpoint: Mapping[str, Any]) -> None:
        recent, size = checkpoint["recent"], distributed.size()
        own = recent[distributed.rank()] if len(recent) == size else torch.stack(recent).mean(0)
        if own.shape[-1] != len(self.names):
            raise InputError("--resume: an older version wrote this run, with another loss: start a new one")
        super()._restore(checkpoint)
        self.generator.set_state(checkpoint["generator"])
        self.batches.rest = checkpoint["rest_of_epoch"]
        self.held_out = checkpoint["held_out"] and HeldOut(**checkpoint["held_out"])
        self.recent = list(own.to(self.device))
        self.started -= checkpoint["seconds"]
        logger.info("the run goes on after %s", self._place())

    def _place(self) -> str:
        return f"step {self.step} of {self.config.steps}"

    def _how_to_go_on(self) -> str:
        command = [*sys.argv, *([] if "--resume" in sys.argv else ["--resume"])]
        size = distributed.size()
        return f"go on{f', in {size} processes,' if size > 1 else ''} with: python {shlex.join(command)}"

    def _seconds(self) -> float:
        return time.monotonic() - self.started


def earlier_run(config: PretrainingConfig) -> tuple[PretrainingConfig, EarlierRun | None]:
    """The run that --resume goes on with, None without that flag or such a run; before it the settings, which are its
    own but for those that the command line gives. Every process calls it.

    :raises InputError: a flag contradicts it; or, without --resume, the folder holds a run that is not finished.
    """
    folder, name = config.folder, Pretraining.checkpoint_name
    if not config.resume:
        if distributed.is_main() and (checkpoints := newest_first(folder, name)):
            raise InputError(
                f"--output_dir={folder} holds a run that is not finished ({checkpoints[0].name}): go on with --resume, "
                f"give another --output_dir, or delete its checkpoints"
            )
        return config, None
    found = load_newest(folder, name) if distributed.is_main() else None  # the others read what it found
    path = distributed.broadcast_object(found and found[0])
    if path is not None:
        checkpoint = found[1] if found else load_whole(path)
        if "settings" not in checkpoint:
            raise InputError(f"--output_dir={folder} holds another kind of run ({path.name}): give another folder")
        run = EarlierRun(path, checkpoint["settings"], checkpoint)
    elif weights.find_weights(folder):
        finished = weights.load(folder)
        run = EarlierRun(finished.weights_file, finished.training_args.get(RUN, {}), None)
    else:
        return config, None
    return go_on_as(config, run.settings.get("flags", {}), run.path), run


def settings_of(config: PretrainingConfig, captions: Sequence[str], earlier: EarlierRun | None) -> dict[str, Any]:
    """What makes a run what it is: its flags, the batch of all processes, and its captions.

    :raises InputError: an earlier run, which is to go on, has a batch of another size or other captions.
    """
    size, digest = distributed.size(), hashlib.sha256("\n".join(captions).encode()).hexdigest()
    settings = {
        "flags": config.settings(),
        "batch_size": config.batch_size * size,
        "captions": {"number": len(captions), "source": config.source, "sha256": digest},
    }
    trained = (earlier and earlier.settings) or settings
    if settings["batch_size"] != trained["batch_size"]:
        raise InputError(
            f"--resume: a batch of the run of {earlier.path} has {trained['batch_size']} captions, but {size} "
            f"processes x --batch_size={config.batch_size} are {settings['batch_size']}"
        )
    if digest != trained["captions"]["sha256"]:
        raise InputError(
            f"the captions ({len(captions)} of {config.source}) are not those of the run of {earlier.path} "
            f"({trained['captions']['number']} of {trained['captions']['source']}): name those, or start a new run"
        )
    return settings
