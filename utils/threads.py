"""Work on a CPU divided by items (batches, blocks of pairs), not within each operation.

How PyTorch divides an operation among threads changes the last bits of its result. With one thread for each item the
bits of an item depend on the item alone, so that they are the same for any number of threads or processes; and threads
do not wait for each other after every operation.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

CPU_BATCH = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


def videos_at_once(batch_size: int, device: torch.device) -> int:
    """Videos that one thread encodes at once: at most `batch_size`, and few on a CPU.

    There more are no faster; threads would wait for decoders at the start and for each other at the end, and an
    interruption would lose more.
    """
    return min(batch_size, CPU_BATCH) if device.type == "cpu" else batch_size


@contextmanager
def one_thread_per_item(device: torch.device) -> Iterator[int]:
    """Inside, every operation on a CPU takes one thread.

    :return: for `map_in_order`, how many threads there are for items: 1 for other devices.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu":
        yield 1
        return
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`function` of each item, in the order of the items, `workers` items at a time and few of them ahead.

    The threads take over autocast and have gradients off, as PyTorch keeps both for each thread. They enter autocast
    once, not for each item: whenever a thread leaves it, the weights that autocast has cast are forgotten in all.
    """
    if workers == 1:
        yield from map(function, items)
        return
    enabled, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def enter() -> None:
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        torch.autocast("cpu", dtype, enabled).__enter__()  # which the thread leaves with its end

    try:
        with ThreadPoolExecutor(workers, initializer=enter) as pool:
            running: deque[Future[Result]] = deque()
            try:
                for item in items:
                    running.append(pool.submit(function, item))
                    if len(running) > workers:
                        yield running.popleft().result()
                while running:
                    yield running.popleft().result()
            finally:
                for waiting in running:
                    waiting.cancel()
    finally:
        torch.clear_autocast_cache()
