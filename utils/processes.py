"""A function over many items, on all cores, with a progress bar."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2

from utils.errors import RunError
from utils.machine import cores
from utils.progress import progress

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(
    function: Callable[[Item], Result], items: Sequence[Item], title: str, workers: int | None = None
) -> Iterator[tuple[Item, Result]]:
    """The items, in order, with what the function made of them in other processes.

    Processes are spawned, so a program that calls this needs the `if __name__ == "__main__"` guard.

    :param function: of a module's top level, as it has to be named to the processes.
    :param workers: processes, by default one per core.
    :raises RunError: a process died, for want of memory or in a decoder.
    """
    context = multiprocessing.get_context("spawn")
    workers = max(1, min(workers or cores(), len(items)))
    with ProcessPoolExecutor(workers, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        results = pool.map(function, items, chunksize=max(1, min(8, len(items) // workers)))
        try:
            yield from zip(items, progress(results, title, len(items), "videos"), strict=True)
        except BrokenProcessPool as error:
            raise RunError(f"{title}: a worker process died; start again with fewer at once") from error
