"""Signals that stop a run: noted, and obeyed where the run can be saved."""

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """A context in which SIGTERM and SIGINT are noted in `number`. A second one acts as it does without this."""

    def __init__(self) -> None:
        self.number = 0  # of the signal that came, or 0

    def __enter__(self) -> "StopSignal":
        self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
