"""What the machine gives this process."""

import math
import os
from contextlib import suppress
from pathlib import Path

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
