#!/usr/bin/env bash
# All checks: format and lint, then the tests. Arguments go to pytest, for example `scripts/test.sh -k conformance`.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements-test.txt

ruff format --check .
ruff check .
python -m pytest "$@"
