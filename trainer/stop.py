"""Signals that stop a run: noted, and obeyed where the run can be saved."""

import logging
import signal
import time
from types import FrameType
from typing import NoReturn

from trainer import distributed

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
IMPATIENT_SECONDS = 1.0  # after a Ctrl-C, from which on another one is meant: launchers pass the first on once more


class StopSignal:
    """A context in which SIGTERM and SIGINT are noted in `number`.

    More of them change nothing, as a scheduler and a launcher may both send one, but for a second Ctrl-C of somebody
    who will not wait.
    """

    def __init__(self) -> None:
        self.number = 0  # of the first signal that came, or 0
        self.at = 0.0

    def __enter__(self) -> "StopSignal":
        self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def end_run(self, place: str, go_on: str) -> NoReturn:
        """End a run that is saved; every process calls it.

        :param place: the step that is saved.
        :param go_on: how to go on.
        :raises RunStopped:
        """
        number = signal.Signals(self.number or signal.SIGTERM)  # it may have come to another process
        message = f"stopped by {number.name} after {place}, which is saved; {go_on}"
        logger.info(message)
        distributed.barrier()  # a launcher ends all processes as soon as one has left
        raise distributed.RunStopped(message, number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.number == 0:
            self.number, self.at = number, now
        elif number == signal.SIGINT and now - self.at > IMPATIENT_SECONDS:
            raise KeyboardInterrupt
