"""Real groups of processes for tests: torchrun, mpirun, or forks that meet at a port of their own."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty

import torch

from utils.distributed import Processes, process_group
from utils.launch import free_port
from utils.program import run_program

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = Path(sys.executable).parent


def launch(
    launcher: str, size: int, program: str, *arguments: str, timeout: float = 120
) -> subprocess.CompletedProcess:
    """Run a Python program in `size` processes, started as people start it."""
    command = {
        "torchrun": [PROGRAMS / "torchrun", "--nnodes=1", f"--nproc_per_node={size}", "--rdzv_backend=c10d",
                     "--rdzv_endpoint=127.0.0.1:0", program],
        "mpirun": [PROGRAMS / "mpirun", "-n", str(size), sys.executable, program],
    }[launcher]  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*map(str, command), *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )


def in_processes(size: int, function: Callable, *arguments: object, timeout: float = 120) -> list:
    """What `function(*arguments)` returns in each of `size` processes of one gloo group, by rank."""
    codes, values = run_processes(size, function, *arguments, timeout=timeout)
    assert codes == [0] * size
    return values


def run_processes(
    size: int, function: Callable, *arguments: object, timeout: float = 120
) -> tuple[list[int | None], list]:
    """Run a function in `size` processes of one gloo group; forked, so that nothing is imported again.

    :return: exit codes by rank, negative for signals; what the processes that reached their end returned, by rank.
    """
    context = multiprocessing.get_context("fork")
    queue, port = context.Queue(), free_port()
    started = [
        context.Process(target=_member, args=(rank, size, port, queue, function, arguments)) for rank in range(size)
    ]
    for process in started:
        process.start()
    values, deadline = [], time.monotonic() + timeout
    while any(process.is_alive() for process in started) and time.monotonic() < deadline:
        with suppress(Empty):
            values.append(queue.get(timeout=0.05))
    for process in started:
        process.kill()
        process.join()
    with suppress(Empty):
        while True:
            values.append(queue.get(timeout=0.05))
    return [process.exitcode for process in started], [value for _, value in sorted(values, key=lambda v: v[0])]


def _member(
    rank: int, size: int, port: int, queue: multiprocessing.Queue, function: Callable, arguments: tuple
) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    code = run_program("member", lambda: _call(Processes(rank, size, rank, size), queue, function, arguments))
    queue.close()
    queue.join_thread()
    os._exit(code)


def _call(here: Processes, queue: multiprocessing.Queue, function: Callable, arguments: tuple) -> None:
    with process_group(here, torch.device("cpu")):
        value = function(*arguments)
    queue.put((here.rank, value))
