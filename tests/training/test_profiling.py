"""A few steps looked into: which, what is told, and a trace that a viewer opens."""

import json
from pathlib import Path

import pytest
from tiny_training import assert_same_weights, tiny_trainer, weights

from seqtrain.reporting import profile_table
from seqtrain.training.profiling import RECORDED, SKIPPED, WARM_UP, StepProfile, StepProfiler


def profiled(folder: Path, **settings: int) -> list[StepProfile]:
    found: list[StepProfile] = []
    profiler = StepProfiler(folder / "profile", found.append, on_gpu=False)
    trainer = tiny_trainer(folder / "run", observers=[profiler], **settings)
    trainer.fit()
    profiler.close()
    assert_same_weights(weights(trainer.model), unwatched(folder, **settings))
    return found


def unwatched(folder: Path, **settings: int) -> dict:
    trainer = tiny_trainer(folder / "unwatched", **settings)
    trainer.fit()
    return weights(trainer.model)


def test_some_steps_are_told_once_in_order_of_time_and_change_nothing(tmp_path: Path) -> None:
    (found,) = profiled(tmp_path, max_tokens=60)
    assert found.num_steps == RECORDED
    calls = {each.name: each.calls for each in found.operations}
    assert calls["Optimizer.step#AdamW.step"] == 1
    assert calls["aten::convolution_backward"] == 3  # one a block
    shares = [each.share for each in found.operations]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    assert sum(each.milliseconds for each in found.operations) == pytest.approx(found.milliseconds)


def test_the_trace_is_one_that_perfetto_and_tensorboard_read(tmp_path: Path) -> None:
    (found,) = profiled(tmp_path, max_tokens=60)
    assert found.trace.name.endswith(".pt.trace.json")
    events = json.loads(found.trace.read_text(encoding="utf-8"))["traceEvents"]
    steps = {event["name"] for event in events if event["name"].startswith("ProfilerStep")}
    first = SKIPPED + WARM_UP
    assert steps == {f"ProfilerStep#{step}" for step in range(first, first + RECORDED)}
    assert all("dur" in event for event in events if event.get("ph") == "X")


def test_a_run_that_is_too_short_tells_nothing(tmp_path: Path) -> None:
    assert profiled(tmp_path, max_tokens=10_000) == []


def test_the_table_fits_a_screen_and_adds_up_to_all(tmp_path: Path) -> None:
    (found,) = profiled(tmp_path, max_tokens=60)
    table = profile_table(found, most=5)
    assert table.row_count == 6
    shares = [float(str(cell).rstrip("%")) for cell in table.columns[1]._cells]
    assert sum(shares) == pytest.approx(100, abs=0.5)
