"""Those who watch a run: JSON lines, TensorBoard, the terminal.

The one door to rich and TensorBoard.
Progress goes to stderr; stdout is for results.
"""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from seqtrain.training.checkpoint import write_text
from seqtrain.training.events import EpochEvent, StepEvent
from seqtrain.training.profiling import StepProfile

LOG_EVERY_SECONDS = 10.0
"""How often a run without a terminal says that it lives."""


class JsonLines:
    """Writes one JSON object per step and per epoch.

    Args:
        path: The file; lines of steps after ``step`` are dropped, since a resumed run makes them
            again.
        step: The step from which training goes on.
    """

    def __init__(self, path: Path, step: int = 0):
        kept = [line for line in _read_lines(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        # By line: a checkpoint must never be ahead of the lines of its steps.
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def on_step(self, event: StepEvent) -> None:
        """Write a ``step`` line."""
        self._write({"kind": "step", **vars(event)})

    def on_epoch(self, event: EpochEvent) -> None:
        """Write an ``epoch`` line."""
        line = {k: v for k, v in vars(event).items() if k not in ("model", "confusion")}
        self._write({"kind": "epoch", **line})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(to_json(line) + "\n")


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON: numbers that are not finite become null, numpy scalars plain numbers."""

    def clean(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {str(key): clean(inner) for key, inner in item.items()}
        if isinstance(item, list | tuple):
            return [clean(inner) for inner in item]
        if isinstance(item, np.generic):
            item = item.item()
        return None if isinstance(item, float) and not math.isfinite(item) else item

    return json.dumps(clean(value), indent=indent, allow_nan=False)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; a line cut short by a crash is dropped."""
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return lines


class TensorBoard:
    """Scalars, histograms of the running statistics, the confusion matrix, hyper-parameters.

    Args:
        folder: Where event files go.
        settings: The settings by dotted name, written with the final metrics.
        class_names: Names of rows and columns of the confusion matrix.
        step: The step from which training goes on; later events of before are hidden.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], class_names: Sequence[str], step: int = 0
    ):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        self._settings, self._class_names = settings, class_names
        self._last: dict[str, float] = {}

    def on_step(self, event: StepEvent) -> None:
        """Write the scalars of a step."""
        for name in ("loss", "lr", "grad_norm", "residues_per_second", "padding_share"):
            self._writer.add_scalar(f"train/{name}", getattr(event, name), event.step)

    def on_epoch(self, event: EpochEvent) -> None:
        """Write validation metrics, running statistics and the confusion matrix."""
        for name, value in event.valid.items():
            self._writer.add_scalar(f"valid/{name}", value, event.step)
        for name, buffer in event.model.named_buffers():
            # Of infinite values TensorBoard makes no histogram, but an error that ends the run.
            if name.endswith(("running_mean", "running_var")) and buffer.isfinite().all():
                self._writer.add_histogram(f"norms/{name}", buffer, event.step)
        if event.confusion is not None:
            figure = confusion_figure(event.confusion, self._class_names)
            self._writer.add_figure("valid/confusion", figure, event.step)
        self._last = {f"final/{name}": value for name, value in event.valid.items()}

    def close(self) -> None:
        """Write the hyper-parameters with the last metrics, and close."""
        if self._last:
            self._writer.add_hparams(dict(self._settings), self._last, run_name=".")
        self._writer.close()


def confusion_figure(counts: np.ndarray, class_names: Sequence[str]) -> Any:
    """A matplotlib figure of a confusion matrix: colours are shares of each true class."""
    from matplotlib.figure import Figure

    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.4 + 0.42 * len(class_names)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(class_names))
    axes.set_xticks(ticks, class_names, rotation=45, ha="right")
    axes.set_yticks(ticks, class_names)
    axes.set(xlabel="predicted", ylabel="true")
    for row, column in np.ndindex(*counts.shape):
        if counts[row, column]:
            colour = "white" if shares[row, column] > 0.5 else "black"
            number = str(counts[row, column])
            axes.text(column, row, number, ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, label="share of the true class")
    return figure


class ProgressBar:
    """A live display on a terminal: loss, metric, residues per second, padding, time left."""

    def __init__(self, console: Console, step: int = 0):
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            TextColumn("step {task.completed}/{task.total}"),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, completed=step, epoch=1, text="")
        self._progress.start()

    def on_step(self, event: StepEvent) -> None:
        """Move the bar."""
        text = _step_text(event)
        self._progress.update(
            self._task, total=event.num_steps, completed=event.step, epoch=event.epoch, text=text
        )

    def on_epoch(self, event: EpochEvent) -> None:
        """Leave a line for the epoch above the bar."""
        self._progress.console.print(_epoch_text(event), highlight=False)

    def close(self) -> None:
        """Take the bar away."""
        self._progress.stop()


class PlainLines:
    """Progress for a pipe or a log file: a line per epoch, and one every few seconds."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._first_step: int | None = None

    def on_step(self, event: StepEvent) -> None:
        """Write a line if the last one was long ago."""
        now = time.monotonic()
        if self._first_step is None:
            self._first_step = event.step - 1
        if now - self._last >= LOG_EVERY_SECONDS:
            done = event.step - self._first_step
            left = (now - self._began) / done * (event.num_steps - event.step)
            self._say(
                f"  step {event.step}/{event.num_steps}  {_step_text(event)}  "
                f"at most {_duration(left)} left"
            )

    def on_epoch(self, event: EpochEvent) -> None:
        """Write a line."""
        self._say(_epoch_text(event))

    def close(self) -> None:
        """Nothing is open."""

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
        self._last = time.monotonic()


def _step_text(event: StepEvent) -> str:
    return (
        f"loss {event.loss:.4f}  {event.residues_per_second:,.0f} residues/s  "
        f"padding {event.padding_share:.0%}"
    )


def _epoch_text(event: EpochEvent) -> str:
    star = " *" if event.is_best else ""
    return (
        f"epoch {event.epoch}/{event.num_epochs}  train loss {event.train_loss:.4f}  "
        f"valid loss {event.valid['loss']:.4f}  "
        f"valid {event.monitor} {event.valid[event.monitor]:.4f}{star}  "
        f"{event.residues_per_second:,.0f} residues/s  padding {event.padding_share:.0%}  "
        f"{_duration(event.seconds)}"
    )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def stderr_console() -> Console:
    """The console for progress and messages."""
    return Console(stderr=True)


def stdout_console() -> Console:
    """The console for results; wide enough for tables when piped."""
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A rich table; the first column is text, the others are right-aligned."""
    # As Text: a file or class called "[red]" would else become a style.
    drawn = Table(title=Text(title), title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        drawn.add_column(Text(column), justify="right" if number else "left")
    for row in rows:
        drawn.add_row(*(Text(_cell(value)) for value in row))
    return drawn


def profile_table(profile: StepProfile, most: int = 16) -> Table:
    """What took the time of a training step, on one screen."""
    title = (
        f"a step: {profile.milliseconds:,.1f} ms of operations (mean of {profile.num_steps} steps)"
    )
    rows = [
        (each.name[:56], f"{each.share:.1%}", f"{each.milliseconds:.2f}", f"{each.calls:.0f}")
        for each in profile.operations[:most]
    ]
    rest = profile.operations[most:]
    if rest:
        share, taken = (
            sum(getattr(each, key) for each in rest) for key in ("share", "milliseconds")
        )
        rows.append((f"{len(rest)} others", f"{share:.1%}", f"{taken:.2f}", ""))
    return table(title, ("operation", "share", "ms", "calls"), rows)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    size = abs(value)
    if math.isnan(value):
        return "–"
    if 0 < size < 0.001:
        return f"{value:.2e}"
    return f"{value:.3f}" if size < 10 else f"{value:.4g}" if size < 1000 else f"{value:,.0f}"
