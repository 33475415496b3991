"""Writes a run for TensorBoard. The one door to it."""

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from seqtrain.escaping import for_figure
from seqtrain.training.events import EpochEvent, Guarded, StepEvent

MAX_PICTURED = 30
"""Classes in the picture of the confusion matrix; of more, those that are confused most."""


class TensorBoard:
    """Scalars, histograms of the running statistics, the confusion matrix, hyper-parameters.

    The confusion matrix is drawn once, at the end, for the epoch whose checkpoint is kept.

    Args:
        folder: Where event files go.
        settings: The settings by dotted name, written with the final scores.
        class_names: Names of rows and columns of the confusion matrix.
        step: The step from which training goes on; later events of before are hidden.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], class_names: Sequence[str], step: int = 0
    ):
        from torch.utils.tensorboard import SummaryWriter

        self._excepthook = threading.excepthook
        threading.excepthook = self._without_writers_traceback
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        self._settings, self._class_names = settings, class_names
        self._final: dict[str, float] = {}
        self._num_steps = 0
        self._confusion: tuple[np.ndarray, int] | None = None

    def on_step(self, event: StepEvent) -> None:
        """Write the scalars of a step."""
        for name in ("loss", "lr", "grad_norm", "residues_per_second", "padding_share"):
            self._writer.add_scalar(f"train/{name}", getattr(event, name), event.step)

    def on_epoch(self, event: EpochEvent) -> None:
        """Write validation metrics and running statistics."""
        for name, value in event.valid.items():
            self._writer.add_scalar(f"valid/{name}", value, event.step)
        for name, buffer in event.model.named_buffers():
            # Of infinite values TensorBoard makes no histogram, but an error.
            if name.endswith(("running_mean", "running_var")) and buffer.isfinite().all():
                self._writer.add_histogram(f"norms/{name}", buffer, event.step)
        if event.is_best and event.confusion is not None:
            self._confusion = event.confusion, event.step

    def on_summary(self, summary: Mapping[str, Any]) -> None:
        """Keep the final scores: those of the kept checkpoint, on the test part if there is one."""
        scored = summary.get("test", summary["valid"])["metrics"]
        self._final = {f"final/{name}": found["value"] for name, found in scored.items()}
        self._num_steps = summary["steps"]

    def close(self) -> None:
        """Write the confusion matrix, the settings with the final scores if known, and close."""
        try:
            if self._confusion is not None and self._class_names:
                self._draw(*self._confusion)
            if self._final:
                self._writer.add_hparams(
                    dict(self._settings), self._final, run_name=".", global_step=self._num_steps
                )
            self._writer.close()
        finally:
            threading.excepthook = self._excepthook

    def _draw(self, counts: np.ndarray, step: int) -> None:
        with warnings.catch_warnings():
            # A box takes the place of what the font lacks; one warning per letter helps nobody.
            warnings.filterwarnings("ignore", message="Glyph")
            figure = confusion_figure(counts, self._class_names)
            self._writer.add_figure("valid/confusion", figure, step)

    def _without_writers_traceback(self, args: threading.ExceptHookArgs) -> None:
        """The writing thread hands its error over; the traceback that it prints too is noise."""
        if not type(args.thread).__module__.startswith("tensorboard."):
            self._excepthook(args)


def write_final(
    folder: Path,
    settings: Mapping[str, Any],
    summary: Mapping[str, Any],
    warn: Callable[[str], None],
) -> None:
    """Write the final scores beside the settings; they are known when a run has been scored.

    Args:
        folder: Where event files go.
        settings: The settings by dotted name.
        summary: What ``summary.json`` holds.
        warn: Gets one sentence if that fails.
    """

    def board() -> TensorBoard:
        made = TensorBoard(folder, settings, ())
        made.on_summary(summary)
        return made

    Guarded(board, "TensorBoard", warn).close()


def confusion_figure(counts: Int64[np.ndarray, "K K"], class_names: Sequence[str]) -> Any:
    """A matplotlib figure of a confusion matrix: colours are shares of each true class.

    Of more than ``MAX_PICTURED`` classes it shows those that are confused most.
    """
    from matplotlib.figure import Figure

    chosen = most_confused(counts, MAX_PICTURED)
    shares = counts[chosen][:, chosen] / np.maximum(counts[chosen].sum(axis=1, keepdims=True), 1)
    shown = counts[chosen][:, chosen]
    names = [for_figure(class_names[index]) for index in chosen]
    side = 2.4 + 0.42 * len(names)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=45, ha="right")
    axes.set_yticks(ticks, names)
    axes.set(xlabel="predicted", ylabel="true")
    if len(names) < len(counts):
        axes.set_title(f"the {len(names)} of {len(counts):,} classes that are confused most")
    for row, column in np.ndindex(*shown.shape):
        if shown[row, column]:
            colour = "white" if shares[row, column] > 0.5 else "black"
            number = str(shown[row, column])
            axes.text(column, row, number, ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, label="share of the true class")
    return figure


def most_confused(counts: Int64[np.ndarray, "K K"], most: int) -> list[int]:
    """Indices of the classes with the most errors, as truth or as prediction, ascending."""
    if len(counts) <= most:
        return list(range(len(counts)))
    errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    return sorted(np.argsort(-errors, kind="stable")[:most].tolist())
