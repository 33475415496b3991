"""Observers of a run: JSON lines and the terminal. The one door to rich.

Progress goes to stderr; stdout is for results. Names come from files: nothing that is printed here
steers the terminal.
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

from seqtrain.escaping import for_terminal, visible
from seqtrain.training.events import EpochEvent, StepEvent
from seqtrain.training.profiling import StepProfile
from seqtrain.training.run_dir import write_text

MAX_CONFUSIONS = 12
"""Lines of the confusion table when the whole matrix does not fit on the terminal."""

MAX_WHOLE_NAME = 40
"""Characters of the first column that are never broken over lines."""

LOG_EVERY_SECONDS = 10.0
"""Seconds between signs of life where there is no terminal."""


class JsonLines:
    """Writes one JSON object per step and per epoch.

    The lines are the run's own record: unlike what another observer meets, an error here ends the
    run, which can be resumed.

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


class ProgressBar:
    """A live display on a terminal: loss, metric, residues per second, padding, time left."""

    def __init__(self, console: Console, step: int = 0):
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, completed=step, epoch=1, text="")
        self._progress.start()

    def on_step(self, event: StepEvent) -> None:
        """Move the bar."""
        text = f"step {event.step}/{event.num_steps} {_step_text(event)}"
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
        """Not counted in the time left: it may have compiled what the others find."""

    def on_step(self, event: StepEvent) -> None:
        """Write a line if the last one was long ago."""
        now = time.monotonic()
        if self._first_step is None:
            self._first_step, self._began = event.step, now
        if now - self._last >= LOG_EVERY_SECONDS:
            said = f"  step {event.step}/{event.num_steps}  {_step_text(event)}"
            done = event.step - self._first_step
            if done:
                left = (now - self._began) / done * (event.num_steps - event.step)
                said += f"  at most {_duration(left)} left"
            self._say(said)

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


class _SafeConsole(Console):
    """Prints texts as they are, without markup, and lets none of them steer the terminal."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich does, with texts escaped."""
        safe = (for_terminal(each) if isinstance(each, str) else each for each in objects)
        super().print(*safe, **{"markup": False, **options})

    def on_broken_pipe(self) -> None:
        """Leave it to the command line: rich would exit with 1 where `| head` has seen enough."""
        raise BrokenPipeError


def stderr_console() -> Console:
    """The console for progress and messages."""
    return _SafeConsole(stderr=True)


def stdout_console() -> Console:
    """The console for results; wide enough for tables when piped."""
    return _SafeConsole(width=None if sys.stdout.isatty() else 120, highlight=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A rich table; the first column is text, the others are right-aligned."""
    # As Text: a file or class called "[red]" would else become a style.
    drawn = Table(title=Text(visible(title)), title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        # Cut names may look alike: the first column keeps its width, what is too long is folded.
        names = [len(visible(_cell(row[0]))) for row in rows] if number == 0 else []
        drawn.add_column(
            Text(visible(column)),
            justify="right" if number else "left",
            overflow="fold",
            no_wrap=0 < max(names, default=0) <= MAX_WHOLE_NAME,
        )
    for row in rows:
        drawn.add_row(*(Text(visible(_cell(value))) for value in row))
    return drawn


def confusion_table(names: Sequence[str], counts: np.ndarray, width: int) -> Table:
    """The confusion matrix; the most frequent confusions where it is wider than ``width``.

    Args:
        names: Of the classes.
        counts: ``(K, K)``, rows are the truth.
        width: Characters of a line of the terminal.
    """
    columns = [max(len(visible(name)), len(f"{counts.max():,}")) + 3 for name in names]
    if sum(columns) + max(columns) + 16 <= width:
        rows = [(name, *line) for name, line in zip(names, counts.tolist(), strict=True)]
        return table("confusion", ("true \\ predicted", *names), rows)
    errors = counts * ~np.eye(len(counts), dtype=bool)
    cells = np.argsort(-errors, axis=None, kind="stable")[:MAX_CONFUSIONS]
    pairs = [divmod(int(cell), len(counts)) for cell in cells if errors.flat[cell]]
    lines = [
        (names[true], names[found], int(errors[true, found]), f"{share:.0%}")
        for true, found in pairs
        for share in [errors[true, found] / counts[true].sum()]
    ]
    title = f"most frequent confusions ({len(lines)} of {np.count_nonzero(errors):,} kinds)"
    return table(title, ("true", "predicted", "count", "of the class"), lines)


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
