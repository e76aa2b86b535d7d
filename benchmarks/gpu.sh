#!/usr/bin/env bash
# What this project does on this machine's GPU: conformance with the CPU, speed, hidden waits. At most five minutes on an
# H100. --quick runs the same code with tiny sizes, on a CPU too; --help lists the flags. It installs nothing, and takes
# the Python of the PATH, or $PYTHON.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD:$PWD/Diffusion-LM${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
