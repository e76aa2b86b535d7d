"""What every training here does around its steps: it moves the weights, reads losses late, saves, stops at a signal and
goes on."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from trainer.checkpoints import BEST, CHECKPOINT_NAME, newest_first
from trainer.resume import restore_random_state
from utils import distributed
from utils.device import random_state
from utils.errors import InputError, RunError
from utils.stop import StopSignal

Item = TypeVar("Item")

GRADIENT_NORM = 1.0


class Loop(ABC):
    """A training, in one of its processes.

    A subclass makes the optimizer and its schedule, takes the steps, and knows what else its checkpoints hold.

    :param model: on its device.
    :param folder: of the run, where its checkpoints lie.
    :param dtype: of matrix products; float16 scales the loss.
    :param seed: of the run.
    """

    optimizer: Optimizer
    scheduler: LRScheduler
    checkpoint_name: ClassVar[re.Pattern[str]] = CHECKPOINT_NAME
    remedy: ClassVar[str]  # against losses that are not finite

    def __init__(self, model: nn.Module, folder: Path, device: torch.device, dtype: torch.dtype, seed: int) -> None:
        self.model, self.folder, self.device, self.dtype, self.seed = model, folder, device, dtype, seed
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.step = 0  # steps done
        self.recent: list[Tensor] = []  # losses of each step since the last log line, on the device
        self.names: list[str] = []  # of these losses
        self.stop = StopSignal()

    @abstractmethod
    def _save_step(self) -> None:
        """Write the checkpoint of this step; only of finite losses. In all processes."""

    @abstractmethod
    def _place(self) -> str:
        """This step, as people count."""

    @abstractmethod
    def _how_to_go_on(self) -> str:
        """The command that resumes the run."""

    def _descend(self, losses: Mapping[str, Tensor]) -> None:
        """A step of the optimizer.

        :param losses: scalars by name: "loss", which is minimised, and others to be logged.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(losses["loss"]).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_NORM)
        self.scaler.step(self.optimizer)
        if self._step_was_taken():
            self.scheduler.step()
        self.step += 1
        values = dict(losses)
        if not self.scaler.is_enabled():  # which meets gradients that are not finite, and leaves out the step
            values["gradient_norm"] = norm
        self.names = list(values)
        self.recent.append(torch.stack(list(values.values())).detach())  # reading it here would wait for the device

    def _step_was_taken(self) -> bool:
        """Update the loss scale; whether the optimizer's step was taken, which fp16 leaves out where gradients are
        infinite. Only fp16 has to wait for the device to know."""
        if not self.scaler.is_enabled():
            return True
        scale = self.scaler.get_scale()
        self.scaler.update()
        return self.scaler.get_scale() >= scale

    def _read_recent(self) -> Tensor:
        """Losses of the steps since the last log line, (steps, names), on the CPU.

        :raises RunError: they are not finite.
        """
        if not self.recent:
            return torch.empty(0, len(self.names))
        values = torch.stack(self.recent).cpu()
        for row, column in (~values.isfinite()).nonzero().tolist()[:1]:
            where = self._where(self.step - len(values) + 1 + row)
            finite = [*newest_first(self.folder, self.checkpoint_name), self.folder / BEST]
            last = next((str(path) for path in finite if path.exists()), "none was written yet")
            what = f"{self.names[column]} is {values[row, column]} at {where}"
            raise RunError(f"{what}; last finite checkpoint: {last}; {self.remedy}")
        return values

    def _where(self, step: int) -> str:
        """Where a step of the run was that went wrong."""
        return f"step {step}"

    def _until_the_end(self, items: Iterator[Item]) -> Iterator[Item]:
        """What the steps are made of, until a process cannot read its next one or a signal has come to one: all
        processes meet before each step, so that all of them save the same one and end."""
        while True:
            item = failure = None
            try:
                item = next(items, None)
            except InputError as error:
                failure = error
            if distributed.any_process(failure is not None or self.stop.number != 0):
                self._end(failure)
            if item is None:
                return
            yield item

    def _end(self, failure: InputError | None = None) -> NoReturn:
        """Save and end, in all processes: at the failure of one of them, or at a signal."""
        failures = distributed.gather_objects(failure and str(failure))
        if self.step or not any(failures):
            self._save_step()
        for reason in filter(None, failures):
            distributed.barrier()  # the first one that leaves ends the others, also one that writes
            raise InputError(reason)
        self.stop.end_run(self._place(), self._how_to_go_on())

    def _training_state(self) -> dict[str, Any] | None:
        """What a checkpoint holds of any training beside its step and weights, in the main process; None in the others.

        :raises RunError: the losses are not finite.
        """
        self._read_recent()
        states = distributed.gather_objects(random_state(self.device))
        if not distributed.is_main():
            return None
        return {name: part.state_dict() for name, part in self._parts().items()} | {"random_states": states}

    def _parts(self) -> dict[str, Any]:
        """What changes in training, by the names that checkpoints have for them."""
        return {"optimizer": self.optimizer, "scheduler": self.scheduler, "scaler": self.scaler}

    def _restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        try:
            for name, part in self._parts().items():
                part.load_state_dict(checkpoint.get(name, {}))  # older ones may have no scaler
        except ValueError as error:
            raise InputError(
                "--resume: an older version wrote this run and trained other parameters: start a new run"
            ) from error
        self.step = checkpoint["step"]
        restore_random_state(checkpoint["random_states"], self.seed, self.step, self.device)
