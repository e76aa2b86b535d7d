"""What the machine gives this process."""

import ctypes
import math
import os
import sys
from contextlib import suppress
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of mallopt(3)
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU time and of the period, or "max"


def core_ids() -> set[int]:
    """The CPU cores that this process may run on: not all where a scheduler (SLURM, taskset) binds it to some."""
    try:
        return os.sched_getaffinity(0)
    except AttributeError:  # macOS
        return set(range(os.cpu_count() or 1))


def cores() -> int:
    """How many CPU cores this process may keep busy, at least 1: those that it may run on, or fewer where a container
    has a quota."""
    bound = len(core_ids())
    with suppress(OSError, ValueError):  # no cgroup v2, or no quota
        quota, period = map(int, CGROUP_QUOTA.read_text(encoding="ascii").split())
        return max(1, min(bound, math.ceil(quota / period)))
    return bound


def keep_freed_memory() -> None:
    """Let this process keep what it frees, where its malloc is that of glibc.

    A training step on a CPU takes again what the last one has freed. Else large tensors go back to the system, which
    makes and clears their pages anew, in a virtual machine at much expense. The most that is held is hardly more.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        for setting, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(setting, value)
