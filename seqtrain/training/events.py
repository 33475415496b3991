"""Events of a training run, for its observers."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from seqtrain.nn.model import SequenceModel


@dataclass(frozen=True)
class StepEvent:
    """One optimizer step."""

    step: int
    """Counted from 1."""
    num_steps: int
    """If training is not stopped early."""
    epoch: int
    """Counted from 1."""
    loss: float
    """Mean over what the step counted."""
    lr: float
    grad_norm: float
    """Before clipping."""
    residues_per_second: float
    """Real residues, over the last step."""
    padding_share: float
    """Padded positions over all positions, in this epoch so far."""


@dataclass(frozen=True)
class EpochEvent:
    """One pass over the training part, and the look at the validation part after it."""

    epoch: int
    num_epochs: int
    step: int
    train_loss: float
    valid: dict[str, float]
    """Metrics of the validation part."""
    monitor: str
    is_best: bool
    best: float
    residues_per_second: float
    padding_share: float
    seconds: float
    """Since training began, earlier parts of a resumed run included."""
    model: SequenceModel
    confusion: np.ndarray | None
    """int64 ``(K, K)`` counts of the validation part, rows are the truth; None without classes."""


@runtime_checkable
class Observer(Protocol):
    """Someone who watches; none of them changes what is computed."""

    def on_step(self, event: StepEvent) -> None:
        """After each optimizer step."""

    def on_epoch(self, event: EpochEvent) -> None:
        """After each epoch."""

    def close(self) -> None:
        """When training ends, however it ends."""


class Guarded:
    """An observer that cannot end a run: its first error is told once, then it is left out.

    Args:
        make: Makes the observer; an error here is told like any other.
        name: What messages call it.
        warn: Gets one sentence.
    """

    def __init__(self, make: Callable[[], Observer], name: str, warn: Callable[[str], None]):
        self._name, self._warn = name, warn
        self._observer: Observer | None = None
        self._try(lambda: setattr(self, "_observer", make()))

    def on_step(self, event: StepEvent) -> None:
        """Pass the event on."""
        if (observer := self._observer) is not None:
            self._try(lambda: observer.on_step(event))

    def on_epoch(self, event: EpochEvent) -> None:
        """Pass the event on."""
        if (observer := self._observer) is not None:
            self._try(lambda: observer.on_epoch(event))

    def close(self) -> None:
        """Close the observer."""
        if (observer := self._observer) is not None:
            self._try(observer.close)

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # whatever it is, the training is worth more
            observer, self._observer = self._observer, None
            if observer is not None:
                with suppress(Exception):
                    observer.close()
            reason = " ".join(str(error).split()) or type(error).__name__
            with suppress(OSError):  # standard error may be closed by now
                self._warn(f"{self._name} is left out from here on: {reason}. Training continues.")
