"""`train --profile` as a user runs it."""

import json
from pathlib import Path

import pytest
from small_program import Program

pytestmark = pytest.mark.slow


def test_a_profiled_training_says_what_a_step_is_and_leaves_a_trace(
    program: Program, train_options: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = program("train", *train_options, "batching.max_tokens=60", "--profile", "-o", run)
    assert done.returncode == 0, done.stderr
    assert "ms of operations (mean of 4 steps)" in done.stderr
    assert "aten::convolution_backward" in done.stderr
    assert "operations" not in done.stdout
    (trace,) = (run / "profile").iterdir()
    assert str(trace) in done.stderr.replace("\n", "")
    assert json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    again = program("train", *train_options, "--overwrite", "-o", run)
    assert again.returncode == 0, again.stderr
    assert not (run / "profile").exists()
