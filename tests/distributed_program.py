"""A small program of several processes, that test_distributed.py starts: every exchange once, or a failure."""

import os
import sys
import time

import torch

from utils import distributed
from utils.errors import InputError
from utils.program import run_program


def main() -> None:
    here = distributed.find_processes()
    what, rank = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
    if what == "early":
        raise InputError("--flag=1 is wrong")
    with distributed.process_group(here, torch.device("cpu")):
        assert (here.rank, here.size) == (distributed.rank(), distributed.size())
        if what == "exchange":
            exchange(here)
        elif what == "all":
            raise InputError("the file is missing")
        elif here.rank == rank:
            time.sleep(0.3)
            sys.stderr = Slow()
            raise InputError(f"bad video in process {rank}")
        distributed.gather_rows(torch.zeros(1))  # the others wait here for the one that fails


class Slow:
    """Standard error of a machine that is busy."""

    def write(self, text: str) -> None:
        time.sleep(1)
        sys.__stderr__.write(text)

    def flush(self) -> None:
        sys.__stderr__.flush()


def exchange(here: distributed.Processes) -> None:
    rows = torch.arange(2.0 * here.rank).reshape(here.rank, 2) + 10 * here.rank  # rank r has r rows
    everywhere = distributed.gather_rows(rows)
    assert everywhere.tolist() == [[10 * r + 2 * i, 10 * r + 2 * i + 1] for r in range(here.size) for i in range(r)]
    assert distributed.broadcast_object({"from": here.rank}) == {"from": 0}
    assert distributed.gather_objects(here.rank) == list(range(here.size))
    assert distributed.any_process(here.rank == here.size - 1) and not distributed.any_process(False)
    distributed.barrier()
    own = torch.full((2, 3), float(here.rank), requires_grad=True)
    gathered = distributed.gather_with_gradient(own)
    assert gathered[:, 0].tolist() == [r for r in range(here.size) for _ in range(2)]
    weights = torch.arange(len(gathered)).float()[:, None] * (here.rank + 1)
    (gathered * weights).sum().backward()
    factor = here.size * (here.size + 1) / 2  # what all processes want, summed
    assert own.grad[:, 0].tolist() == [factor * (2 * here.rank), factor * (2 * here.rank + 1)]
    # the gradient is transposed, not contiguous
    square = torch.full((1, here.size), 2.0, requires_grad=True)
    wanted = torch.arange(1.0 + here.size**2)[1:].reshape(here.size, here.size)
    torch.einsum("ij,ji->", distributed.gather_with_gradient(square), wanted).backward()
    assert torch.equal(square.grad[0], here.size * wanted[:, here.rank])
    seen = distributed.gather_objects((here.local_rank, here.local_size, os.getpid()))
    if here.is_main:
        sys.stdout.write(f"{[entry[:2] for entry in seen]} {len({entry[2] for entry in seen})} processes\n")


if __name__ == "__main__":
    sys.exit(run_program("program.py", main))
