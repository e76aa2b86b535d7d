"""How fast training is: pairs per second, time spent waiting for data, memory."""

import resource
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from utils import distributed
from utils.machine import cores

Batch = TypeVar("Batch")

SLOW_LOADING = 0.3  # share of the time spent waiting for data, from which loading is the bottleneck


class Stopwatch:
    """Times the steps between two log lines, and within them the waiting for data.

    Processes do their steps together, so a step waits for data as long as the one that waits longest; how long each of
    them waited for each step is exchanged when it is read.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Count from here."""
        self.started, self.pairs, self.pause_seconds = time.perf_counter(), 0, 0.0
        self.waits: list[float] = []  # seconds before each step, of this process

    def waiting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, with the time that each is waited for counted."""
        iterator = iter(batches)
        while True:
            before = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.waits.append(time.perf_counter() - before)
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not training: evaluation and saving. Waiting for another process in a step is no pause."""
        before = time.perf_counter()
        yield
        self.pause_seconds += time.perf_counter() - before

    def read(self) -> tuple[float, float]:
        """Pairs per second and the share of the time spent waiting for data, since the last restart: those of the
        whole run, in whichever process. All of them must call it after the same number of steps."""
        seconds = max(time.perf_counter() - self.started - self.pause_seconds, 1e-9)
        waited = distributed.maximum(torch.tensor(self.waits, dtype=torch.float64)).sum().item()
        return self.pairs / seconds, min(1.0, waited / seconds)


def how_to_load_faster(waited: float, workers: int) -> str:
    """What to do where a share of the time is spent waiting for so many workers."""
    if workers < cores():
        flag = f"raise --num_workers={workers}: this process may use {cores()} cores"
    else:
        flag = "all cores decode already: keep decoded frames with --frame_cache=FOLDER"
    return f"loading is the bottleneck, {100 * waited:.0f} % of the time is spent waiting for data; {flag}"


def memory_gb(device: torch.device) -> float:
    """The most memory that this process has held so far, of the GPU or of the machine, in GB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
