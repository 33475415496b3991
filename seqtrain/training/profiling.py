"""A look into a few training steps: a trace for Perfetto or TensorBoard, and what took the time."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch.profiler import ProfilerActivity, profile, schedule

from seqtrain.training.events import EpochEvent, StepEvent

SKIPPED, WARM_UP, RECORDED = 4, 2, 4
"""Steps: until everything is compiled and cached, for the profiler itself, and in the trace."""

TRACE = "steps.pt.trace.json"
"""TensorBoard's profiler plugin finds a trace by this ending."""


class Operation(NamedTuple):
    """What one kind of operation took."""

    name: str
    share: float
    """Of all operations' own time, on the GPU if there is one."""
    milliseconds: float
    """Per step."""
    calls: float
    """Per step."""


class StepProfile(NamedTuple):
    """What a few steps consisted of."""

    trace: Path
    num_steps: int
    milliseconds: float
    """Of all operations, per step."""
    operations: list[Operation]
    """Longest first."""


class StepProfiler:
    """An observer that profiles some steps early in a run.

    Args:
        folder: Where the trace goes.
        tell: Called once with what was found; not at all if the run is shorter.
        on_gpu: Look at the GPU too.
    """

    def __init__(self, folder: Path, tell: Callable[[StepProfile], None], on_gpu: bool):
        self._folder, self._tell, self._on_gpu = folder, tell, on_gpu
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would write to the terminal
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        self._profiler: profile | None = profile(
            activities=activities,
            schedule=schedule(
                skip_first=SKIPPED, wait=0, warmup=WARM_UP, active=RECORDED, repeat=1
            ),
            on_trace_ready=self._finish,
        )
        self._profiler.start()

    def on_step(self, event: StepEvent) -> None:  # noqa: ARG002
        """A step is over."""
        if self._profiler is not None:
            self._profiler.step()

    def on_epoch(self, event: EpochEvent) -> None:
        """Nothing: what comes between epochs is in the trace."""

    def close(self) -> None:
        """End it, whether or not there was enough to see."""
        if self._profiler is not None:
            self._profiler.stop()

    def _finish(self, profiler: profile) -> None:
        self._profiler = None
        self._folder.mkdir(parents=True, exist_ok=True)
        trace = self._folder / TRACE
        profiler.export_chrome_trace(str(trace))
        self._tell(_summarize(profiler, trace, self._on_gpu))


def _summarize(profiler: profile, trace: Path, on_gpu: bool) -> StepProfile:
    name = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    # The profiler's own marks of steps hold everything within them.
    found = [each for each in profiler.key_averages() if not each.key.startswith("ProfilerStep")]
    microseconds = {each.key: float(getattr(each, name)) for each in found}
    calls = {each.key: each.count for each in found}
    total = sum(microseconds.values())
    operations = [
        Operation(key, own / max(total, 1e-9), own / 1e3 / RECORDED, calls[key] / RECORDED)
        for key, own in sorted(microseconds.items(), key=lambda item: -item[1])
    ]
    return StepProfile(trace, RECORDED, total / 1e3 / RECORDED, operations)
