#!/usr/bin/env bash
# All checks: format, lint and types, then the tests, two files at a time. Arguments go to pytest, for example
# `scripts/test.sh -k conformance`, `scripts/test.sh --numprocesses=0` for one test after the other, or
# `scripts/test.sh --precision=bf16` for the programs in bf16 instead of fp32.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements-test.txt "$@"

ruff format --check .
ruff check .
mypy
# in the order of their names, as the files with most tests are not those that take longest
python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder "$@"
