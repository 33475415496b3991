"""Draw docs/study.md's figures from what scripts/study.py left, and print its table.

    python scripts/study_figures.py RESULTS docs/study

Copies results.csv of every part that has a report as OUT/PART.csv.
"""

import csv
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from study import parts

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLORS = {
    "masked_batch": "#0a84c1", "batch": "#d9701a", "leaky_batch": "#cf4b8f",
    "masked_layer": "#0b9b72", "layer": "#8a6fd1", "none": "#5f7f8f",
}  # fmt: skip
PLAIN = ("batch", "leaky_batch")
"""Batch norms that take padding for values."""
OTHERS = ("masked_layer", "layer", "none")
LADDER = ("controlled-common-", "controlled-spread-0.5-common-", "controlled-spread-1-common-")
"""Sets with the same background, which differ in their lengths alone."""
MARKERS = {4: "o", 8: "s", 64: "^"}
"""By sequences in a batch."""


@dataclass(frozen=True)
class Contrast:
    """A norm less masked_batch, as the report has it."""

    value: float
    low: float
    high: float
    is_found: bool


@dataclass(frozen=True)
class Done:
    """A part with a report."""

    name: str
    arms: Sequence[Mapping[str, str]]
    """Of results.csv, finished ones."""
    contrasts: Mapping[str, Contrast]

    @property
    def metric(self) -> str:
        """Of residues or of sequences."""
        return "macro_f1" if self.name.startswith("tmbed") else "mcc"

    def values(self, norm: str, column: str) -> list[float]:
        """One per seed."""
        chosen = (arm for arm in self.arms if arm["norm"] == norm)
        return [float(arm[column]) for arm in chosen if arm[column] not in ("", "nan")]


def read(results: Path) -> list[Done]:
    """Every part with a report of two seeds or more, by data set, encoder and batch."""
    found = []
    for part in sorted(parts(), key=lambda part: (part.data, part.encoder, part.batch_size)):
        folder = results / part.name
        if not (folder / "report.md").exists():
            continue
        with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
            arms = [row for row in csv.DictReader(file) if row["status"] == "ok"]
        text = (folder / "report.md").read_text(encoding="utf-8")
        if len({arm["seed"] for arm in arms}) > 1:  # one seed tells two models apart, not two norms
            found.append(Done(part.name, arms, _contrasts(text)))
    return found


def _contrasts(report: str) -> dict[str, Contrast]:
    lines = report.partition("## Differences")[2].splitlines()
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:2] == "| "]
    named = [dict(zip(rows[0], row, strict=True)) for row in rows[1:] if row[0] != "---"]
    return {
        row["condition"]: Contrast(
            _number(row["difference"]),
            _number(row["low"]),
            _number(row["high"]),
            row["found"] == "yes",
        )
        for row in named
    }


def _number(text: str) -> float:
    return float("nan") if text == "–" else float(text.replace(",", ""))


def table(done: Sequence[Done], norms: Sequence[str]) -> str:
    """Markdown: what the reference reached, and each norm's difference; bold where found."""
    lines = [
        f"| part | seeds | padding | masked_batch | {' | '.join(norms)} |",
        "|---|---|---|---|" + "---|" * len(norms),
    ]
    for part in done:
        if not set(norms) & part.contrasts.keys():
            continue
        own = np.array(part.values("masked_batch", part.metric))
        share = np.mean(part.values("masked_batch", "padding_share"))
        cells = [_cell(part.contrasts.get(norm)) for norm in norms]
        lines.append(
            f"| {part.name} | {len(own)} | {share:.0%} | {own.mean():.3f} ± {own.std(ddof=1):.3f} "
            f"| {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _cell(contrast: Contrast | None) -> str:
    if contrast is None:
        return ""
    text = f"{contrast.value:+.3f} ({contrast.low:+.3f} to {contrast.high:+.3f})"
    return f"**{text}**" if contrast.is_found else text


def draw_differences(done: Sequence[Done]) -> None:
    """Plain batch norms less masked_batch, with its interval, a row per part."""
    size = (7.5, 0.9 + 0.36 * len(done))
    _, axis = plt.subplots(figsize=size, layout="constrained")
    for place, norm in enumerate(PLAIN):
        for row, part in enumerate(done):
            found = part.contrasts.get(norm)
            if found is None:
                continue
            y, color = row + (place - 0.5) * 0.3, COLORS[norm]
            axis.plot([found.low, found.high], [y, y], color=color, lw=1.4)
            face = color if found.is_found else "white"
            axis.plot(found.value, y, "o", color=color, mfc=face, ms=4.5)
        axis.plot([], [], "o-", color=COLORS[norm], label=norm)
    axis.axvline(0, color="gray", lw=0.7)
    axis.grid(axis="x", alpha=0.3)
    axis.set(xlabel="test score minus that of masked_batch", xlim=(-0.45, 0.45))
    _legend(axis, 3)
    _rows(axis, done)


def draw_mechanism(done: Sequence[Done]) -> None:
    """Error of the running means, and how far padding moves a logit, by part."""
    size = (9, 0.9 + 0.3 * len(done))
    _, axes = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    for norm in ("masked_batch", "batch", "leaky_batch"):
        for row, part in enumerate(done):
            errors = part.values(norm, "running_mean_error")
            shifts = np.maximum(
                [part.values(norm, f"shift_{w}") for w in ("padded_2x", "padded_4x", "neighbours")],
                1e-8,
            ).max(axis=0)
            for axis, values in zip(axes, (errors, shifts), strict=True):
                axis.plot(values, [row] * len(values), "o", color=COLORS[norm], ms=4, alpha=0.8)
        axes[0].plot([], [], "o", color=COLORS[norm], label=norm)
    for axis, words in zip(
        axes,
        ("error of running means, standard deviations", "largest change of a logit by padding"),
        strict=True,
    ):
        axis.set(xscale="log", xlabel=words)
    _legend(axes[0], 3)
    _rows(axes[0], done)


def draw_scores(done: Sequence[Done]) -> None:
    """The score of every seed and their mean, a row per part."""
    size = (7.5, 0.9 + 0.42 * len(done))
    _, axis = plt.subplots(figsize=size, layout="constrained")
    for place, norm in enumerate(("masked_batch", *PLAIN)):
        for row, part in enumerate(done):
            values, y = part.values(norm, part.metric), row + (place - 1) * 0.24
            axis.plot(values, [y] * len(values), "o", color=COLORS[norm], ms=4, alpha=0.6)
            axis.plot(np.mean(values), y, "|", color=COLORS[norm], ms=11, mew=2.5)
        axis.plot([], [], "o", color=COLORS[norm], label=norm)
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel("test score (Matthews' correlation; macro F1 of tmbed_topology)")
    _legend(axis, 3)
    _rows(axis, done)


def draw_ladder(done: Sequence[Done]) -> None:
    """Plain batch norms less masked_batch, by the share of padding, on sets of one background."""
    rungs = [part for part in done if part.name.startswith(LADDER)]
    _, axis = plt.subplots(figsize=(7, 3.8), layout="constrained")
    for place, norm in enumerate(PLAIN):
        for part in rungs:
            found, color = part.contrasts[norm], COLORS[norm]
            share = 100 * np.mean(part.values("masked_batch", "padding_share")) + place - 0.5
            axis.plot([share, share], [found.low, found.high], color=color, lw=1.4)
            face = color if found.is_found else "white"
            marker = MARKERS[int(part.name.rpartition("-")[2])]
            axis.plot(share, found.value, marker, color=color, mfc=face, ms=5)
        axis.plot([], [], "-", color=COLORS[norm], label=norm)
    for size, marker in MARKERS.items():
        axis.plot([], [], marker, color="gray", mfc="white", label=f"{size} per batch")
    axis.axhline(0, color="gray", lw=0.7)
    axis.grid(axis="y", alpha=0.3)
    axis.set(xlabel="padding, % of positions", ylabel="test score minus that of masked_batch")
    _legend(axis, 5)


def _legend(axis: Axes, columns: int) -> None:
    axis.legend(frameon=False, fontsize=8, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1))


def _rows(axis: Axes, done: Sequence[Done]) -> None:
    axis.set_yticks(range(len(done)), [part.name for part in done], fontsize=8)
    axis.set_ylim(len(done) - 0.5, -0.5)


def main(results: Path, output: Path) -> None:
    done = read(results)
    output.mkdir(parents=True, exist_ok=True)
    for part in done:
        shutil.copyfile(results / part.name / "results.csv", output / f"{part.name}.csv")
    drawn: dict[str, Callable[[Sequence[Done]], None]] = {
        "differences": draw_differences,
        "mechanism": draw_mechanism,
        "scores": draw_scores,
        "ladder": draw_ladder,
    }
    for name, draw in drawn.items():
        draw(done)
        plt.savefig(output / f"{name}.png", dpi=130)
        plt.close()
    print(table(done, PLAIN))
    print()
    print(table(done, OTHERS))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
