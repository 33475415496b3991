#!/bin/sh
# Runs every check: format, lint, types, tests. Arguments go to pytest: sh scripts/test.sh -k norms
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/.."
sh scripts/setup.sh dev
# Small tensors on many threads, or several processes at once, only wait for each other.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
.venv/bin/python -m ruff format --check .
.venv/bin/python -m ruff check .
.venv/bin/python -m mypy
exec .venv/bin/python -m pytest "$@"
