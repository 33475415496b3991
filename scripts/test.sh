#!/bin/sh
# Runs every check: format, lint, types, tests. Arguments go to pytest: sh scripts/test.sh -k norms
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/.."
sh scripts/setup.sh dev
# Small tensors on many threads only wait for each other: two processes of one thread each instead.
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
.venv/bin/python -m ruff format --check .
.venv/bin/python -m ruff check .
.venv/bin/python -m mypy
exec .venv/bin/python -m pytest -n 2 --dist worksteal "$@"
