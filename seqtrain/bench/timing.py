"""Times taken by turns, so that whatever else the machine does falls on all alike."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import nn


def alternate(
    cases: Mapping[str, Callable[[], object]],
    repetitions: int,
    device: torch.device,
    warm_up: int = 2,
) -> dict[str, Float[np.ndarray, " _"]]:
    """Seconds of each case, each repetition running all of them once, in turn.

    Args:
        cases: What to run.
        repetitions: How often.
        device: Waited for after each case.
        warm_up: Repetitions before those that are counted.
    """
    seconds = {name: np.empty(repetitions) for name in cases}
    for repetition in range(-warm_up, repetitions):
        for name, run in cases.items():
            taken = seconds_of(run, device)
            if repetition >= 0:
                seconds[name][repetition] = taken
    return seconds


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Seconds until ``run`` and all that it started on the device are done."""
    synchronize(device)
    began = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def paired_ratio(ours: Float[np.ndarray, " N"], theirs: Float[np.ndarray, " N"]) -> float:
    """Median over the repetitions of one case over the other, each within its repetition."""
    return float(np.median(ours / theirs))


class ModelClock:
    """Seconds from the start of the model's forward pass to the end of the optimizer's step.

    Without an optimizer, to the end of the forward pass.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self._device = device
        self._began: float | None = None

    @contextmanager
    def watching(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
    ) -> Iterator["ModelClock"]:
        """Hooks that are taken off at the end.

        Training steps end with the optimizer's; forward passes in evaluation mode by themselves.
        """

        def begin(*_: object) -> None:
            if self._began is None:
                self._began = time.perf_counter()

        def end_of_forward(module: nn.Module, *_: object) -> None:
            if optimizer is None or not module.training:
                self._end()

        hooks = [
            model.register_forward_pre_hook(begin),
            model.register_forward_hook(end_of_forward),
        ]
        if optimizer is not None:
            hooks.append(optimizer.register_step_post_hook(lambda *_: self._end()))
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def _end(self) -> None:
        assert self._began is not None, "a forward pass comes before its end"
        synchronize(self._device)
        self.seconds += time.perf_counter() - self._began
        self._began = None
