"""Signals that stop a run: noted, and obeyed where the run can be saved."""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from utils import distributed

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
IMPATIENT_SECONDS = 1.0  # after a Ctrl-C, from which on another one is meant: launchers pass the first on once more


class Interrupted(BaseException):
    """A signal came within `StopSignal.at_once`. No error, so that nothing on its way handles it as one."""


class StopSignal:
    """A context in which SIGTERM and SIGINT are noted in `number`.

    More of them change nothing, as a scheduler and a launcher may both send one, but for a second Ctrl-C of somebody
    who will not wait.
    """

    def __init__(self) -> None:
        self.number = 0  # of the first signal that came, or 0
        self.at = 0.0
        self.interrupts = False

    def __enter__(self) -> "StopSignal":
        self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal ends what is computed at once, as does one that came before: for work that a run which goes
        on does again. Schedulers kill what has not left half a minute after their signal.

        :raises Interrupted:
        """
        self.interrupts = True
        try:
            if self.number:
                raise Interrupted
            yield
        finally:
            self.interrupts = False

    def end_run(self, place: str, go_on: str, together: bool = True) -> NoReturn:
        """End a run that is saved.

        :param place: the step that is saved.
        :param go_on: how to go on.
        :param together: every process calls it; else this one ends the others.
        :raises RunStopped:
        """
        number = signal.Signals(self.number or signal.SIGTERM)  # it may have come to another process
        message = f"stopped by {number.name} after {place}, which is saved; {go_on}"
        logger.info(message)
        if together:
            distributed.barrier()  # a launcher ends all processes as soon as one has left
        raise distributed.RunStopped(message, number, together)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.number == 0:
            self.number, self.at = number, now
            if self.interrupts:
                raise Interrupted
        elif number == signal.SIGINT and now - self.at > IMPATIENT_SECONDS:
            raise KeyboardInterrupt
