"""That a training keeps what it frees."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, threading
import torch
from utils.machine import keep_freed_memory

def steps():
    torch.set_num_threads(1)
    for _ in range(20):
        several = [torch.ones(size << 18) for size in (1, 16, 48)]  # 1, 16 and 48 MB

if sys.argv[1] == "keep":
    keep_freed_memory()
steps()
thread = threading.Thread(target=steps)  # as that of a backward pass
thread.start()
thread.join()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread = threading.Thread(target=steps)
thread.start()
thread.join()
steps()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_what_is_freed_is_taken_again():
    """Pages that the system must make anew, in a process that keeps them and in one that does not."""
    kept, made = (
        int(subprocess.run([sys.executable, "-c", FAULTS, what], capture_output=True, text=True, check=True).stdout)
        for what in ("keep", "free")
    )
    assert kept < 0.2 * made
