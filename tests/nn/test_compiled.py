"""Blocks under torch.compile: a graph serves batches of all sizes."""

import os
import subprocess
import sys
from pathlib import Path


def test_one_compiled_block_serves_packed_batches_of_all_sizes() -> None:
    """Equal to the block that is not compiled, forward and backward; a graph per batch would
    compile for ever."""
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, tests / "nn" / "compiled_blocks.py"],
        env={**os.environ, "PYTHONPATH": str(tests), "OMP_NUM_THREADS": "1"},
        cwd=tests.parent,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    graphs = dict(line.split() for line in done.stdout.splitlines())
    assert graphs.keys() == {"cnn", "transformer"}
    assert all(int(number) <= 3 for number in graphs.values()), graphs
