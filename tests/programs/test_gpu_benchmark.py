"""The benchmark of a GPU, on the CPU: a rented GPU is no place to find that it does not run."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.training_runs import run_forked


@pytest.mark.slow
def test_every_section_runs(tmp_path):
    output = tmp_path / "new" / "gpu.json"
    flags = ("--quick", "--gpu=cpu", "--section_seconds=600", "--total_seconds=3000")
    done = run_forked("benchmarks/gpu.py", *flags, f"--output={output}")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["conformance"]["textdiffs"]["error fp32"] <= 1e-6 and found["conformance"]["published"]["error bf16"]
    for section in ("scoring", "training"):
        rows = {name: row for name, row in found[section].items() if name != "seconds"}
        assert len(rows) >= 3 and all(row["pairs/s"] > 0 for row in rows.values())
    assert all(found[section]["all"]["skipped"] for section in ("waits", "compiled"))
    assert os.listdir(output.parent) == ["gpu.json"]


@pytest.mark.slow
def test_time_is_kept_and_told(tmp_path):
    """The sections behind one that took too long still run."""
    output = tmp_path / "gpu.json"
    flags = ("--quick", "--gpu=cpu", "--section_seconds=0.1", "--sections=training,waits")
    done = run_forked("benchmarks/gpu.py", *flags, f"--output={output}")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text(encoding="utf-8"))
    assert "no time is left" in found["training"]["the rest"]["skipped"] and "waits" in found


def test_real_sizes_want_a_gpu(tmp_path):
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--gpu=cpu", f"--output={tmp_path / 'gpu.json'}"]
    done = subprocess.run(command, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 2 and "--quick" in done.stderr and done.stderr.count("\n") == 1
