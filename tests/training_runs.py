"""Programs in forked processes: the real ones, started often and killed, without importing anything again."""

import ctypes
import importlib.util
import json
import logging
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tests.made_up import ROOT
from utils.launch import free_port
from utils.program import run_program


class Run:
    """`python train.py ARGUMENTS` in `size` processes. Their output goes to files in `logs`.

    :param hold: what a process has to log to be held there until `let_go`, as a signal that is sent by the clock may
        come too late; None: nothing holds them. A pair: this text the n-th time.
    """

    def __init__(
        self,
        arguments: list[str],
        logs: Path,
        size: int = 1,
        first: Callable[[], None] = lambda: None,
        program: str = "train.py",
        hold: str | tuple[str, int] | None = None,
    ):
        context = multiprocessing.get_context("fork")
        logs.mkdir(parents=True, exist_ok=True)
        self.logs, port = logs, free_port()
        for path in logs.iterdir():
            path.unlink()  # of a run before
        if hold is not None:
            first = partial(_hold, first, logs, *((hold, 1) if isinstance(hold, str) else hold))
        self.processes = [
            context.Process(target=_run, args=(program, arguments, logs, rank, size, port, first))
            for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def held(self, processes: int = 1) -> bool:
        """Wait until so many of them are held. Whether they are."""
        return wait_for(lambda: len(list(self.logs.glob("*.held"))) == processes, self)

    def let_go(self) -> None:
        """Let those go on that are held."""
        (self.logs / "go").touch()

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


def run_forked(program: str, *arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run a program in a process of its own to its end, offline, as `made_up.run_program` does in a new interpreter."""

    def first() -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.chdir(cwd)

    arguments = tuple(map(str, arguments))
    with TemporaryDirectory() as logs:
        run = Run(list(arguments), Path(logs), first=first, program=program)
        (code,) = run.wait(300)
        return subprocess.CompletedProcess([program, *arguments], code, run.output(), run.errors())


def _hold(first: Callable[[], None], logs: Path, text: str, times: int) -> None:
    """Make this process wait where it logs the text for the n-th time."""
    first()
    info, left = logging.Logger.info, times

    def info_and_wait(self: logging.Logger, message: str, *args: object, **options: object) -> None:
        nonlocal left
        info(self, message, *args, **options)
        left -= text in (message % args if args else message)
        if left == 0:
            left = -1
            (logs / f"{os.getpid()}.held").touch()
            while not (logs / "go").exists():
                time.sleep(0.001)

    logging.Logger.info = info_and_wait


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
    code = run_program(program, module.main)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait_for(condition: Callable[[], bool], run: Run, seconds: float = 60) -> bool:
    """Whether the condition comes true while the run goes on."""
    deadline = time.monotonic() + seconds
    while run.running and time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.001)
    return False


def kill_at_random(
    start: Callable[[], Run],
    folder: Path,
    newest: Callable[[], str],
    kills: int,
    size: int,
    seed: int,
    seconds: float = 0.15,
) -> int:
    """Kill a run of `size` processes again and again, half of the times while it writes a checkpoint, and let it end.

    :param start: starts it, to go on.
    :param newest: tells the name of its newest checkpoint in `folder`.
    :param seconds: at most, from a checkpoint to the kill.
    :return: how many times it was writing one.
    """
    generator, writing = random.Random(seed), 0
    for kill in range(kills):
        before, run = newest(), start()
        if kill % 2:
            wait_for(lambda run=run: any(folder.glob(f".*.pth.{run.processes[0].pid}.tmp")), run)
            time.sleep(generator.uniform(0, 0.01))
        else:
            wait_for(lambda before=before: newest() != before, run)
            time.sleep(generator.uniform(0, seconds))
        run.signal(signal.SIGKILL, generator.choice([None, *range(size)]))
        codes = run.wait()
        assert -signal.SIGKILL in codes, run.errors()  # it was not over
        writing += any(folder.glob(".*.tmp"))
    assert start().wait() == [0] * size
    assert not any(folder.glob(".*.tmp")) and not any(folder.glob("*.damaged"))
    return writing


def as_others() -> None:
    """Root may write anywhere: give up that right, as capabilities(7) says."""
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None, use_errno=True).capset(header, nothing) == 0


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
