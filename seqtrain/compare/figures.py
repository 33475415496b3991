"""The figures of a comparison, each drawn once for PNG, SVG and the page."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from seqtrain.compare.analysis import (
    ROUNDING,
    Analysis,
    statistics_error,
    variance_error,
)
from seqtrain.compare.plan import Condition

# Okabe and Ito's colours, darkened or lightened until each reads on white and on near-black.
COLOURS = ("#0a84c1", "#d9701a", "#cf4b8f", "#0b9b72", "#8a6fd1", "#a8871c", "#5f7f8f", "#c0463c")
INK = "#010203"
"""Stands for the page's text colour in figures that go into a page."""
STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
}
WIDTH = 4.3  # inches: at 390 px of a phone the letters keep about their size

Draw = Callable[[Figure, Analysis], None]


def draw_figures(analysis: Analysis, folder: Path) -> dict[str, str]:
    """Write ``NAME.png`` and ``NAME.svg``, and return SVG for a page, by name.

    The page's SVG takes its ink from the page, and groups of one arm carry ``data-arm``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pages = {}
    for name, draw in FIGURES.items():
        with rc_context({**STYLE, "svg.hashsalt": name}):
            rows = len(analysis.conditions)
            height = 1.3 + 0.34 * rows if name in _BY_ROW else 3.1
            if name == "learning_curves":
                height = 0.6 + 1.1 * ceil(rows / 2)
            figure = Figure(figsize=(WIDTH, height), layout="constrained")
            draw(figure, analysis)
            figure.savefig(folder / f"{name}.png", dpi=200, facecolor="white")
            figure.savefig(folder / f"{name}.svg", facecolor="white", metadata={"Date": None})
            page = io.StringIO()
            figure.savefig(page, format="svg", transparent=True, metadata={"Date": None})
        pages[name] = _for_page(page.getvalue(), name)
    return pages


def _for_page(svg: str, name: str) -> str:
    """Without the header, in the page's ink, arms marked and named on hovering."""
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(
        r'<g id="arm:([^"]*)">',
        lambda m: f'<g data-arm="{m[1]}"><title>{m[1]}</title>',
        svg,
    )
    svg = re.sub(r'\bid="((?:figure|axes|patch|text|line2d|xtick|ytick|matplotlib)[^"]*)"', "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(TITLES[name])}"', 1)


def _colour(analysis: Analysis, condition: Condition) -> str:
    return COLOURS[analysis.conditions.index(condition) % len(COLOURS)]


def _mark(artist: Any, analysis: Analysis, condition: Condition) -> None:
    artist.set_gid(f"arm:{escape(analysis.label(condition))}")


def _rows(axes: Axes, labels: list[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)


def _forest(figure: Figure, analysis: Analysis) -> None:
    """Differences with their intervals; hollow where none was found."""
    axes, labels = figure.add_subplot(), []
    for row, contrast in enumerate(analysis.contrasts):
        d, condition = contrast.difference, contrast.condition
        colour = _colour(analysis, condition)
        fill = colour if contrast.is_found else "none"
        (line,) = axes.plot([d.low, d.high], [row, row], color=colour, lw=2)
        (point,) = axes.plot(d.value, row, "o", color=colour, mfc=fill, mew=1.5, ms=7)
        for artist in (line, point):
            _mark(artist, analysis, condition)
        labels.append(analysis.label(condition))
    axes.axvline(0, color=INK, lw=0.8)
    axes.locator_params(axis="x", nbins=5)
    _rows(axes, labels)
    references = {analysis.label(c.reference) for c in analysis.contrasts}
    beside = f" from {references.pop()}" if len(references) == 1 else ""
    axes.set_xlabel(f"difference in {analysis.metric}{beside}")


def _curves(figure: Figure, analysis: Analysis) -> None:
    """A panel for each condition: mean over seeds, the band from the lowest to the highest, and
    the mean of the first condition behind."""
    rows = ceil(len(analysis.conditions) / 2)
    panels = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).flat
    first = analysis.conditions[0]
    for condition, axes in zip(analysis.conditions, panels, strict=False):
        colour = _colour(analysis, condition)
        if condition != first:
            epochs, values = _validation(analysis, first)
            (behind,) = axes.plot(epochs, values.mean(axis=0), color=INK, lw=1, ls=":", alpha=0.8)
            _mark(behind, analysis, first)
        epochs, values = _validation(analysis, condition)
        (line,) = axes.plot(epochs, values.mean(axis=0), color=colour, lw=1.6)
        band = axes.fill_between(
            epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.25, lw=0
        )
        for artist in (line, band):
            _mark(artist, analysis, condition)
        axes.set_title(analysis.label(condition), color=colour, fontsize=8, loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.grid()
    for axes in panels:  # one is left over where conditions are odd in number
        axes.set_axis_off()
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel(f"validation {analysis.metric}", fontsize=9)


def _validation(analysis: Analysis, condition: Condition) -> tuple[list[int], np.ndarray]:
    """Epochs, and the score after each, a row per seed; as far as all seeds went."""
    curves = [r["curve"] for r in analysis.finished(condition)]
    length = min(map(len, curves))
    values = np.array([[_number(p["value"]) for p in c[:length]] for c in curves])
    return [point["epoch"] for point in curves[0][:length]], values


def _shift(figure: Figure, analysis: Analysis) -> None:
    """Largest change of each record's logits, all records and seeds, on a logarithmic axis."""
    axes, floor = figure.add_subplot(), 1e-8
    markers = {"padded_2x": "o", "padded_4x": "s", "neighbours": "^"}
    words = {"padded_2x": "padded 2×", "padded_4x": "padded 4×", "neighbours": "with others"}
    for row, condition in enumerate(analysis.conditions):
        for place, (way, marker) in enumerate(markers.items()):
            per_record = [r["padding_shift"][way] for r in analysis.finished(condition)]
            values = np.maximum([_number(v) for arm in per_record for v in arm], floor)
            y = row + (place - 1) * 0.22
            colour = _colour(analysis, condition)
            low, middle, high = np.quantile(values, [0, 0.5, 1])
            (line,) = axes.plot([low, high], [y, y], color=colour, lw=1.3, alpha=0.6)
            (point,) = axes.plot(middle, y, marker, color=colour, ms=5)
            for artist in (line, point):
                _mark(artist, analysis, condition)
    axes.axvline(ROUNDING, color=INK, lw=0.8, ls=":")
    axes.set_xscale("log")
    _rows(axes, [analysis.label(c) for c in analysis.conditions])
    axes.set_xlabel("largest change of a logit (median, range)")
    _explain(figure, {words[way]: (marker, INK) for way, marker in markers.items()})


def _by(key: str, words: str, scale: float) -> Draw:
    def draw(figure: Figure, analysis: Analysis) -> None:
        axes = figure.add_subplot()
        shown = analysis.conditions
        every = [_places(analysis, c, key, scale) for c in shown]
        step = 0.008 * float(np.ptp(np.concatenate(every)) or 1)  # intervals stand side by side
        for number, (condition, places) in enumerate(zip(shown, every, strict=True)):
            arms = [r[key] for r in analysis.finished(condition)]
            values, low, high = (_mean_over(arms, end) for end in ("value", "from", "to"))
            x = places + (number - (len(shown) - 1) / 2) * step
            colour, label = _colour(analysis, condition), analysis.label(condition)
            (line,) = axes.plot(x, values, "o-", ms=4, lw=1.4, color=colour, label=label)
            bars = axes.vlines(x, low, high, color=colour, lw=1, alpha=0.6)
            for artist in (line, bars):
                _mark(artist, analysis, condition)
        axes.set(xlabel=words, ylabel=f"{analysis.part} {analysis.metric}")
        _finish(figure, axes)

    return draw


def _places(
    analysis: Analysis, condition: Condition, key: str, scale: float
) -> Float[np.ndarray, " Q"]:
    """The median of each quarter; its middle in arms that were measured before it was kept."""
    bins = analysis.finished(condition)[0][key]
    return scale * np.array([b.get("median", (b["low"] + b["high"]) / 2) for b in bins])


def _mean_over(arms: Sequence[Sequence[Mapping[str, Any]]], end: str) -> Float[np.ndarray, " Q"]:
    """Means over the seeds, a number for each quarter; NaN where an arm does not have it."""
    values = np.array([[_number(b.get(end)) for b in arm] for arm in arms])
    mean: np.ndarray = values.mean(axis=0)
    return mean


def _statistics(figure: Figure, analysis: Analysis) -> None:
    """Means (filled) and variances (hollow) of the running statistics; every seed a point."""
    axes = figure.add_subplot()
    chosen = [c for c in analysis.conditions if analysis.finished(c)[0]["running_statistics"]]
    for row, condition in enumerate(chosen):
        colour = _colour(analysis, condition)
        for shift, (measure, face) in enumerate(
            ((statistics_error, colour), (variance_error, "none"))
        ):
            values = [measure(r) for r in analysis.finished(condition)]
            (points,) = axes.plot(
                values,
                [row + (shift - 0.5) * 0.3] * len(values),
                "o",
                color=colour,
                mfc=face,
                ms=5,
            )
            _mark(points, analysis, condition)
    if not chosen:
        axes.text(
            0.5, 0.5, "no arm keeps running statistics", ha="center", transform=axes.transAxes
        )
        axes.set_axis_off()
        return
    axes.set_xscale("log")
    _rows(axes, [analysis.label(c) for c in chosen])
    axes.set_xlabel("distance from the exact pooled statistics")
    _explain(figure, {"mean, in exact SD": ("o", INK), "variance, |log ratio|": ("o", "none")})


def _cost(figure: Figure, analysis: Analysis) -> None:
    """Mean over seeds; bars are the range."""
    axes = figure.add_subplot()
    for condition in analysis.conditions:
        arms = analysis.finished(condition)
        cost = np.array([r["microseconds_per_residue"] for r in arms])
        quality = np.array([_number(r["metrics"][analysis.metric]) for r in arms])
        colour = _colour(analysis, condition)
        x, y = cost.mean(), quality.mean()
        (wide,) = axes.plot([cost.min(), cost.max()], [y, y], color=colour, lw=1, alpha=0.5)
        (high,) = axes.plot([x, x], [quality.min(), quality.max()], color=colour, lw=1, alpha=0.5)
        (point,) = axes.plot(x, y, "o", color=colour, ms=6, label=analysis.label(condition))
        for artist in (wide, high, point):
            _mark(artist, analysis, condition)
    axes.set(xlabel="µs per residue in training", ylabel=f"{analysis.part} {analysis.metric}")
    _finish(figure, axes)


def _explain(figure: Figure, marks: Mapping[str, tuple[str, str]]) -> None:
    """A legend of marker and fill by meaning, in the ink: its colour is no arm's."""
    handles = [
        Line2D([], [], color=INK, ls="", marker=marker, mfc=fill, ms=5, label=words)
        for words, (marker, fill) in marks.items()
    ]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), handletextpad=0.2
    )


def _finish(figure: Figure, axes: Axes) -> None:
    axes.grid()
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=3 if max(map(len, labels)) < 16 else 2,
        handlelength=1.2,
        columnspacing=1,
    )


def _number(value: float | None) -> float:
    return np.nan if value is None else value


FIGURES: Mapping[str, Draw] = {
    "differences": _forest,
    "learning_curves": _curves,
    "padding_shift": _shift,
    "running_statistics": _statistics,
    "by_length": _by("by_length", "residues (median of a quarter)", 1),
    "by_padding": _by("by_padding", "padding of the record, % (median of a quarter)", 100),
    "cost": _cost,
}
TITLES: Mapping[str, str] = {
    "differences": "Differences from the reference",
    "learning_curves": "Learning curves",
    "padding_shift": "Padding shift",
    "running_statistics": "Error of the running statistics",
    "by_length": "Score by length",
    "by_padding": "Score by padding share",
    "cost": "Cost and quality",
}
_BARS = "Bars: 95 % bootstrap interval over the records of the quarter, averaged over seeds."
CAPTIONS: Mapping[str, str] = {
    "differences": "Mean over seeds with its 95 % paired bootstrap interval. Filled: a difference "
    "was found; hollow: none was.",
    "learning_curves": "Validation after each epoch: mean over seeds, band from the lowest to the "
    "highest seed. Dotted: the first condition.",
    "padding_shift": "How far the logits of a record move from where they are alone, when it is "
    "padded or batched with others. Left of the dotted line is rounding.",
    "running_statistics": "Distance of each arm's running statistics from the exact ones of all "
    "real residues; one point per seed, averaged over layers and channels.",
    "by_length": "The score within quarters of the records by length, at the median length of each "
    f"quarter: mean over seeds. {_BARS}",
    "by_padding": "The score when chance decides who is padded with whom, within quarters of the "
    f"records by their share of padding, at the median share of each quarter. {_BARS}",
    "cost": "Training time per real residue against the score; bars reach from the lowest to the "
    "highest seed.",
}
_BY_ROW = ("differences", "padding_shift", "running_statistics")
