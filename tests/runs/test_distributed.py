"""Several processes as one: how they are started, what they exchange, and how they end."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from tests.processes import ROOT, in_processes, launch, run_processes
from utils import distributed, machine
from utils.launch import Processes, find_processes

PROGRAM = str(ROOT / "tests" / "distributed_program.py")
COLOURS, SHAPES, SIDES = (
    ("red", "green", "blue", "grey", "pink"), ("ball", "box", "star", "ring", "cross"),
    ("up", "down", "left", "right", "away"),
)  # fmt: skip
LAUNCHERS = ["torchrun", "mpirun"]


def own_lines(done: subprocess.CompletedProcess) -> list[str]:
    """What our program said on standard error, without what the launcher adds."""
    return [line for line in done.stderr.splitlines() if "error: " in line and line.startswith(("program.py", "error"))]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_exchanges(launcher):
    done = launch(launcher, 3, PROGRAM, "exchange")
    assert done.returncode == 0, done.stderr
    assert "[(0, 3), (1, 3), (2, 3)] 3 processes" in done.stdout


def test_without_a_launcher_exchanges_are_the_identity():
    assert find_processes() == Processes() and Processes().is_main
    rows = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather_with_gradient(rows) is rows and distributed.gather_rows(rows) is rows
    assert distributed.gather_objects(5) == [5] and distributed.broadcast_object(5) == 5
    assert distributed.any_process(True) and not distributed.any_process(False)
    module = torch.nn.Linear(2, 2)
    assert distributed.synchronised(module) is module
    assert distributed.is_main() and (distributed.rank(), distributed.size()) == (0, 1)


def test_slurm(monkeypatch):
    """Two steps of srun, with the variables that it sets; a batch script alone is one process."""
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert find_processes() == Processes()  # in the batch script, before srun
    with socket.socket() as free:
        free.bind(("", 0))
        job = free.getsockname()[1]
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": str(job),
            "SLURM_STEP_TASKS_PER_NODE": "2(x1)", "OMP_NUM_THREADS": "1"}  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, PROGRAM, "exchange"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | step | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    output = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0, 0], output
    assert "[(0, 2), (1, 2)] 2 processes" in output[0][0]


def test_slurm_names_the_first_machine(monkeypatch):
    for nodes, first in (("gpu[07-09,12]", "gpu07"), ("a1,b2", "a1"), ("node3", "node3")):
        for name, value in (("PROCID", "5"), ("STEP_NUM_TASKS", "8"), ("LOCALID", "1"), ("JOB_ID", "12345678"),
                            ("STEP_NODELIST", nodes), ("STEP_TASKS_PER_NODE", "4(x2)")):  # fmt: skip
            monkeypatch.setenv(f"SLURM_{name}", value)
        monkeypatch.delenv("MASTER_ADDR", raising=False)
        assert find_processes() == Processes(5, 8, 1, 4)
        assert os.environ["MASTER_ADDR"] == first and os.environ["MASTER_PORT"] == "15678"
    monkeypatch.delenv("MASTER_ADDR")
    monkeypatch.delenv("MASTER_PORT")


def test_steps_of_slurm_jobs_meet_at_ports_of_their_own(monkeypatch):
    """Steps of one job, and of jobs that were submitted one after the other; what the user sets comes first."""
    for name, value in (("PROCID", "1"), ("STEP_NUM_TASKS", "2"), ("LOCALID", "1"), ("STEP_NODELIST", "localhost")):
        monkeypatch.setenv(f"SLURM_{name}", value)

    def port(job: int, step: int) -> int:
        monkeypatch.delenv("MASTER_PORT", raising=False)
        monkeypatch.setenv("SLURM_JOB_ID", str(job))
        monkeypatch.setenv("SLURM_STEP_ID", str(step))
        assert find_processes().rank == 1
        return int(os.environ["MASTER_PORT"])

    ports = [port(job, step) for job in range(12_345_600, 12_345_800) for step in range(20)]
    assert len(set(ports)) == len(ports) and 15_000 <= min(ports) <= max(ports) < 20_000
    monkeypatch.setenv("MASTER_PORT", "29501")
    find_processes()
    assert os.environ["MASTER_PORT"] == "29501"
    monkeypatch.delenv("MASTER_PORT")
    monkeypatch.delenv("MASTER_ADDR")


def test_a_port_that_another_run_has_is_said_with_the_way_out():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        here = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port}  # fmt: skip
        done = subprocess.run(
            [sys.executable, PROGRAM, "exchange"], cwd=ROOT, env=os.environ | here, capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
    (line,) = own_lines(done)
    assert done.returncode == 1 and f"127.0.0.1:{port}" in line and "set the variable MASTER_PORT" in line


def own_cores(bound: list[set[int]]) -> int:
    """Of a process that is bound to some of three cores; more cores than a test machine may have."""
    machine.core_ids = distributed.core_ids = lambda: bound[distributed.rank()]
    return distributed._own_cores()


@pytest.mark.parametrize(
    ("bound", "own"),
    [
        ([{0, 1, 2, 3}, {0, 1, 2, 3}], [2, 2]),
        ([{0, 1, 2}, {3}], [3, 1]),
        ([{0}, {0}], [1, 1]),
        ([{0, 1, 2}, {2, 3}], [2, 1]),
    ],
)
def test_processes_divide_the_cores_that_they_share(bound, own):
    """Those of torchrun share all; srun and mpirun may have bound each to cores of its own."""
    assert in_processes(2, own_cores, bound) == own


def test_cores_are_those_that_may_be_used(monkeypatch, tmp_path):
    """By the scheduler and by the quota of a container, of CPU time in each 100 ms."""
    one = min(os.sched_getaffinity(0))
    program = "from utils.machine import cores; print(cores())"
    done = subprocess.run(
        [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{one}}}); {program}"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'Diffusion-LM'}"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "1\n", done.stderr
    monkeypatch.setattr(machine, "core_ids", lambda: set(range(8)))
    monkeypatch.setattr(machine, "CGROUP_QUOTA", tmp_path / "cpu.max")
    assert machine.cores() == 8
    for quota, expected in (("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1),
                            ("9900000 100000", 8)):  # fmt: skip
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
        assert machine.cores() == expected


@pytest.mark.parametrize(
    ("launcher", "arguments", "said"),
    [("mpirun", ["early"], "--flag=1 is wrong"), ("mpirun", ["all"], "the file is missing"),
     ("mpirun", ["input", "0"], "bad video in process 0"), ("torchrun", ["input", "1"], "bad video in process 1")],
)  # fmt: skip
def test_an_error_ends_all_processes_with_one_line(launcher, arguments, said):
    started = time.monotonic()
    done = launch(launcher, 2, PROGRAM, *arguments, timeout=60)
    assert done.returncode != 0
    assert own_lines(done) == [f"program.py: error: {said}"], done.stderr
    assert time.monotonic() - started < 30


def wait_or_die(victim: int) -> None:
    """A member of a group: the victim is killed, the others wait in an exchange."""
    if distributed.rank() == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.gather_rows(torch.zeros(1))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others(victim, capfd):
    """With nothing around the processes that would end them."""
    codes, values = run_processes(2, wait_or_die, victim, timeout=60)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 1
    assert values == []
    said = capfd.readouterr().err
    assert "ended" in said
