"""Several processes as one run: the process group and what they exchange. The only file, with launch.py, that knows
ranks.

Without a process group every exchange is the identity, so callers need not ask how many processes there are. All
processes must call an exchange in the same order.

Gradients. `gather_with_gradient` hands every process the rows of all; its backward pass sums what all processes want of
a row. When every process computes the same loss L of the gathered rows, its gradient is therefore `size` times its
share of dL/dw, and the mean over processes that DistributedDataParallel takes is exactly dL/dw.
"""

import gc
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from fractions import Fraction
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.parallel import DistributedDataParallel

from utils.errors import InputError, RunError
from utils.launch import Processes, find_processes, speak_up
from utils.machine import core_ids, cores

__all__ = ["Processes", "find_processes"]

START_SECONDS = 300  # that a process waits for the others at the start
EXCHANGE_SECONDS = 3600  # that an exchange waits for a process that lives; one may be busy alone, writing or evaluating
WATCH_SECONDS = 0.5  # between two looks at whether another process has failed
LEAVE_SECONDS = 10  # that a process has to end by itself once one has failed
SPEAK_SECONDS = 2  # that the first one that failed has to say why, before the others leave
MERGED_AT_ONCE = 2**22  # entries of `merge_maximum`
FAILED = "failed"  # the key under which the first process that fails leaves its rank and exit code
LEFT = "left"  # the key that counts the processes that know of it


@contextmanager
def process_group(here: Processes, device: torch.device) -> Iterator[None]:
    """The process group of a run: NCCL between GPUs, gloo between CPUs. Nothing for a single process.

    An error in one process ends all of them. Only the first that fails passes its error on; the others leave with its
    exit code and without a word.

    :raises RunError: the processes do not find each other, or another one has ended.
    """
    if here.size == 1:
        yield
        return
    watch = _join(here, device)
    try:
        if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(_own_cores())
        yield
        barrier()  # nobody takes the store away while another one still exchanges
    except BaseException as error:
        if isinstance(error, RunStopped) and error.together:
            watch.end()
            traceback.clear_frames(error.__traceback__)
            _leave_group()
            raise
        code = watch.fail(error.exit_code if isinstance(error, InputError | RunError) else 1)
        if code is not None:
            raise SystemExit(code) from None
        speak_up()
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise RunError(f"another process of the run has ended: {str(error).splitlines()[0]}") from error
        raise
    watch.end()
    _leave_group()


def _own_cores() -> int:
    """Cores for this process alone, at least 1: it shares each that it may use with the processes of this machine that
    may use it too. srun and mpirun may have divided them already."""
    here = socket.gethostname(), core_ids()
    others = [ids for host, ids in gather_objects(here) if host == here[0]]
    own = sum(Fraction(1, sum(core in ids for ids in others)) for core in here[1])
    return max(1, int(own * cores() / len(here[1])))


def _leave_group() -> None:
    """End the group, after the DDP modules that use it: one that is deleted later ends it itself, and waits for ever,
    with Python's lock held, for a thread of gloo that needs the lock."""
    gc.collect()
    dist.destroy_process_group()


class RunStopped(RunError):
    """A run that a signal has stopped; what it wrote says how to go on.

    :param signal_number: the exit code is 128 + it, as shells count.
    :param together: all processes have agreed on it; else this one ends the others.
    """

    def __init__(self, message: str, signal_number: int, together: bool = True) -> None:
        super().__init__(message)
        self.exit_code, self.together = 128 + signal_number, together


def _join(here: Processes, device: torch.device) -> "_Watch":
    """Meet the other processes at MASTER_ADDR, MASTER_PORT."""
    waiting = timedelta(seconds=START_SECONDS)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store, _, _ = next(dist.rendezvous("env://", here.rank, here.size, timeout=waiting))
        exchange = timedelta(seconds=EXCHANGE_SECONDS)
        dist.init_process_group(backend, timeout=exchange, store=store, rank=here.rank, world_size=here.size)
        watch = _Watch(store, here)
        barrier()  # until all of them watch
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise RunError(
            f"process {here.rank} of {here.size} does not meet the others at {place}: {str(error).splitlines()[0]} "
            f"(if another run has this port, set the variable MASTER_PORT of all processes of this one to a free port)"
        ) from error
    return watch


class _Watch:
    """Ends this process when another one has failed, however it waits: a thread looks at the common store."""

    def __init__(self, store: dist.Store, here: Processes) -> None:
        self.here = here
        # `own` is a connection of the thread: one that waits holds its lock. The ignore: torch's stubs have no clone
        self.own, self.store = (store.clone() for _ in range(2))  # type: ignore[attr-defined]
        self.ended = threading.Event()
        self.code: int | None = None  # of a process that has failed, once this one leaves for it
        threading.Thread(target=self._look, daemon=True).start()

    def end(self) -> None:
        """The run is over: failures of others are none any more."""
        self.ended.set()

    def fail(self, code: int) -> int | None:
        """Tell the others that this process fails with `code`: None, or the code of one that failed before."""
        leave = threading.Timer(LEAVE_SECONDS, os._exit, (code,))
        leave.daemon = True
        leave.start()
        mine = f"{self.here.rank} {code}"
        self.ended.set()
        if self.code is not None:
            return self.code
        try:
            first = self.store.compare_set(FAILED, "", mine).decode()
            self._leave(self.store, first == mine)
        except RuntimeError:  # the process that holds the store has ended first
            return None if self.here.rank == 1 else code
        return None if first == mine else int(first.split()[1])

    def _leave(self, store: dist.Store, is_first: bool) -> None:
        """Count this process as one that knows; the main one, which may hold the store, waits for the others. Launchers
        end all processes once one has left: those that are not the first one that failed let it say why."""
        known = store.add(LEFT, 1)
        deadline = time.monotonic() + LEAVE_SECONDS / 2
        while self.here.is_main and known < self.here.size and time.monotonic() < deadline:
            time.sleep(0.05)
            known = store.add(LEFT, 0)
        if not is_first:
            time.sleep(SPEAK_SECONDS)

    def _look(self) -> None:
        while not self.ended.wait(WATCH_SECONDS):
            code = self._code_of_failed()
            if code is not None and not self.ended.wait(2 * WATCH_SECONDS):  # it may be on its way out
                self.code = code
                with suppress(RuntimeError):
                    self._leave(self.own, is_first=False)
                os._exit(code)

    def _code_of_failed(self) -> int | None:
        try:
            if not self.own.check([FAILED]):
                return None
            return int(self.own.get(FAILED).decode().split()[1])
        except RuntimeError:
            if self.here.rank == 1 and not self.ended.is_set():
                sys.stderr.write("error: the main process of the run has ended\n")
            return 1


def is_main() -> bool:
    """Whether this process logs and writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Index of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Wait for all processes, on the host."""
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1))  # a CPU tensor: dist.barrier would wait for the GPU


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process. Waits for the hosts of all, not for their GPUs."""
    if not dist.is_initialized():
        return flag
    return bool(maximum(torch.tensor([flag], dtype=torch.int32)))


@contextmanager
def main_first() -> Iterator[None]:
    """The main process does it, then the others: for files that the first one makes and the others find."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def broadcast_object(value: Any) -> Any:
    """What the main process has, in every process."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def mean(values: Tensor) -> Tensor:
    """The mean over all processes of a CPU tensor."""
    if not dist.is_initialized():
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / dist.get_world_size()


def maximum(values: Tensor) -> Tensor:
    """The largest of all processes in each place of a CPU tensor, of one shape and type in all of them."""
    if not dist.is_initialized():
        return values
    values = values.clone()
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return values


def gather_objects(value: Any) -> list[Any]:
    """The values of all processes, by rank, in every process."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes, one below the other by rank, in every process; each may have another number of them,
    also none.

    :param rows: CPU tensor (n, ...), of one type and, but for n, one shape in all processes.
    """
    if not dist.is_initialized():
        return rows
    counts = gather_objects(len(rows))
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])


def merge_maximum(matrix: np.ndarray) -> None:
    """Make every entry of a float32 matrix (rows, columns) its maximum over all processes, in place, some rows at a
    time."""
    if not dist.is_initialized():
        return
    step = max(1, MERGED_AT_ONCE // max(1, matrix.shape[1]))
    for start in range(0, len(matrix), step):
        dist.all_reduce(torch.from_numpy(matrix[start : start + step]), dist.ReduceOp.MAX)


def gather_with_gradient(rows: Tensor) -> Tensor:
    """The rows of all processes (size * n, ...), with gradients: see the contract above.

    :param rows: (n, ...), the same n in all processes, on the device of the process group.
    """
    if not dist.is_initialized():
        return rows
    return _GatherRows.apply(rows)


class _GatherRows(torch.autograd.Function):
    """Rows of all processes. (torch.distributed.nn's all_gather gives wrong gradients under gloo where the gradient is
    not contiguous.)"""

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor) -> Tensor:
        gathered = rows.new_empty(dist.get_world_size() * len(rows), *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        own = gradient.new_empty(len(gradient) // dist.get_world_size(), *gradient.shape[1:])
        dist.reduce_scatter_tensor(own, gradient)
        return own


def synchronised(module: nn.Module) -> nn.Module:
    """The module with the weights of the main process; its backward pass averages the gradients of all processes.

    Every parameter that requires a gradient must get one in each step. Inputs stay where they are: the training step
    moves them chunk by chunk.
    """
    if not dist.is_initialized():
        return module
    shared = DistributedDataParallel(_Rehearsed(module), broadcast_buffers=False, gradient_as_bucket_view=True)
    shared().backward()
    module.zero_grad(set_to_none=True)
    return shared


class _Rehearsed(nn.Module):
    """A module that can be called without arguments, for a first gradient of everything.

    After its first backward pass DistributedDataParallel puts gradients into buckets in the order in which they came.
    With that pass out of the way before training, all steps have the same buckets: else sums of more than two processes
    would round otherwise in the first step after a resumption. Here the last parameter's gradient comes first, about as
    in training.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: object) -> object:
        """What the module gives, or of no inputs a scalar."""
        if inputs:
            return self.module(*inputs)
        return sum(parameter.sum() for parameter in self.parameters() if parameter.requires_grad)
