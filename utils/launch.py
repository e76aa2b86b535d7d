"""Which process of a run this is, by what started it: torchrun, mpirun, srun, or nothing. Imports no torch."""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from utils.errors import InputError

# hydra (MPICH, Intel MPI) and Open MPI name themselves to the processes that they start
MPI_VARIABLES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
SLURM_PORTS = (15_000, 20_000)  # the rendezvous takes one of them by the ids of the job and of its step
PORTS_BETWEEN_STEPS = 251  # 20 steps of each of 200 jobs with ids in a row take different ones


@dataclass(frozen=True)
class Processes:
    """This process among those of the run. A single process is rank 0 of 1."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of this machine
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that logs and writes."""
        return self.rank == 0


def find_processes() -> Processes:
    """This process among those of the run; all of them must call it. Several find their rendezvous in MASTER_ADDR and
    MASTER_PORT afterwards.

    :raises InputError: what started the processes left a variable out.
    """
    started_by = _started_by(os.environ)
    if started_by == "torchrun":
        return Processes(*(_number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
    if started_by == "mpirun":
        return _from_mpi()
    if started_by == "srun":
        return _from_slurm()
    return Processes()


_speaks_up = False


def speak_up() -> None:
    """This process reports its error, because it is the first that failed."""
    global _speaks_up
    _speaks_up = True


def speaks() -> bool:
    """Whether this process logs, and reports errors that all processes meet alike, such as a wrong flag."""
    if _speaks_up or _started_by(os.environ) is None:
        return True
    return next((os.environ[name] for name in RANK_VARIABLES if name in os.environ), "0") == "0"


def _started_by(environment: Mapping[str, str]) -> str | None:
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return "torchrun"
    if "SLURM_PROCID" in environment and not environment.keys() & set(MPI_VARIABLES[:2]):
        # a batch script has a SLURM_PROCID as well, but it is no step of several tasks
        return "srun" if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1 else None
    if environment.keys() & set(MPI_VARIABLES):
        return "mpirun"
    return None


def _from_mpi() -> Processes:
    """MPI is left as soon as it has told the rendezvous: its library must not meet the forks of the data loader, and a
    process that fails later need not wait in MPI_Finalize for the others."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    local = world.Split_type(MPI.COMM_TYPE_SHARED)
    here = Processes(world.Get_rank(), world.Get_size(), local.Get_rank(), local.Get_size())
    address = world.bcast((_own_address(here), free_port()) if here.is_main else None)
    local.Free()
    MPI.Finalize()
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address[0], str(address[1])
    return here


def _from_slurm() -> Processes:
    first = _match(r"([^\[,]+)(?:\[(\d+))?", "SLURM_STEP_NODELIST")
    low, high = SLURM_PORTS
    os.environ.setdefault("MASTER_ADDR", first[1] + (first[2] or ""))
    step = _number("SLURM_STEP_ID") if "SLURM_STEP_ID" in os.environ else 0
    place = (_number("SLURM_JOB_ID") + PORTS_BETWEEN_STEPS * step) % (high - low)
    os.environ.setdefault("MASTER_PORT", str(low + place))
    local_size = _match(r"\d+", "SLURM_STEP_TASKS_PER_NODE", "1")
    return Processes(
        _number("SLURM_PROCID"), _number("SLURM_STEP_NUM_TASKS"), _number("SLURM_LOCALID"), int(local_size[0])
    )


def _match(pattern: str, name: str, default: str = "") -> re.Match[str]:
    found = re.match(pattern, os.environ.get(name, default))
    if found is None:
        raise _missing(name)
    return found


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdecimal():
        raise _missing(name)
    return int(value)


def _missing(name: str) -> InputError:
    return InputError(f"the variable {name}={os.environ.get(name, '')} does not say where this process is among others")


def _own_address(here: Processes) -> str:
    """An address of this machine that the other processes reach."""
    return "127.0.0.1" if here.size == here.local_size else socket.gethostname()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]
