"""Training runs in forked processes: the real train.py, started often and killed, without importing anything again."""

import importlib.util
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.made_up import ROOT
from trainer import run_folder
from trainer.launch import free_port


class Run:
    """`python train.py ARGUMENTS` in `size` processes. Their output goes to files in `logs`."""

    def __init__(
        self,
        arguments: list[str],
        logs: Path,
        size: int = 1,
        first: Callable[[], None] = lambda: None,
        program: str = "train.py",
    ):
        context = multiprocessing.get_context("fork")
        logs.mkdir(parents=True, exist_ok=True)
        self.logs, port = logs, free_port()
        self.processes = [
            context.Process(target=_run, args=(program, arguments, logs, rank, size, port, first))
            for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def signal(self, number: int, rank: int | None = None) -> None:
        """Send a signal to one of the processes, or to all."""
        for process in self.processes if rank is None else [self.processes[rank]]:
            if process.is_alive():
                os.kill(process.pid, number)

    def wait(self, timeout: float = 120) -> list[int]:
        """Exit codes, once all have ended."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        alive = [process for process in self.processes if process.is_alive()]
        for process in alive:
            process.kill()
            process.join()
        assert not alive, "a process hangs\n" + self.errors()
        return [process.exitcode for process in self.processes]

    @property
    def running(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def errors(self) -> str:
        """What all processes said on standard error."""
        return "".join(path.read_text() for path in sorted(self.logs.glob("*.err")))

    def output(self) -> str:
        """What all processes said on standard output."""
        return "".join(path.read_text() for path in sorted(self.logs.glob("*.out")))


def _run(
    program: str, arguments: list[str], logs: Path, rank: int, size: int, port: int, first: Callable[[], None]
) -> None:
    if size > 1:
        here = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size,
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
        os.environ.update({name: str(value) for name, value in here.items()})
    for stream, number in (("out", 1), ("err", 2)):
        descriptor = os.open(logs / f"{rank}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    torch.set_num_threads(1)
    first()
    specification = importlib.util.spec_from_file_location("entry_point", ROOT / program)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    sys.argv = [program, *arguments]
    code = run_folder.run_program(program, module.main)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def small_files(limit: int) -> Callable[[], None]:
    """A full disk: no file may grow beyond so many bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def final_state(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Weights and optimizer of a checkpoint, by name."""
    checkpoint = torch.load(folder / name, weights_only=True)
    moments = {
        f"{index}.{name}": tensor
        for index, state in checkpoint["optimizer"]["state"].items()
        for name, tensor in state.items()
    }
    return checkpoint["state_dict"] | moments


def losses(folder: Path) -> list[dict]:
    """The records of metrics.jsonl, without what depends on the clock."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in record.items() if not name.startswith("speed/") and name != "eval/seconds"}
        for record in records
    ]
