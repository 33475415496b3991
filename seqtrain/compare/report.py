"""``results.csv``, ``report.md``, ``report.html`` and the figures of a comparison."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from seqtrain.compare.analysis import (
    ALPHA,
    Analysis,
    arm_row,
    condition_of,
    statistics_error,
    worst_shift,
)
from seqtrain.compare.figures import CAPTIONS, TITLES, draw_figures
from seqtrain.escaping import for_html, for_markdown
from seqtrain.training.run_dir import write_text

TITLE = "Norms compared"
CONDITIONS_CAPTION = (
    "Means over seeds; ± is the standard deviation over seeds. Shift: largest change of any logit "
    "by padding or neighbours. Running mean error: in standard deviations, from the exact "
    "statistics. Gap: loss in evaluation minus loss as in training, on training batches."
)
CONTRASTS_CAPTION = (
    "Condition minus reference, paired by seed and record: 95 % bootstrap interval, permutation "
    "p-value, the same after Holm's correction, effect size (Cohen's d over seeds), and the "
    "smallest true difference that would be found with a chance of 80 %. The rule for found: yes "
    f"where p (Holm) is below {ALPHA} and the 95 % interval excludes 0. The p-value asks whether "
    "these trained models differ on other records; the interval counts other seeds too, so that "
    "one can hold without the other."
)

Row = Mapping[str, Any]


def write_report(analysis: Analysis, folder: Path) -> None:
    """Write everything that a reader needs into ``folder``."""
    rows = [arm_row(analysis, result) for result in analysis.results]
    _write_csv(folder / "results.csv", rows)
    figures = draw_figures(analysis, folder / "figures")
    write_text(folder / "report.md", _markdown(analysis, list(figures)))
    write_text(folder / "report.html", _page(analysis, figures, rows))


def condition_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """One line per condition: seeds, score, loss, shift, statistics, gap, calibration, cost."""
    rows = []
    for condition in analysis.conditions:
        arms = analysis.finished(condition)
        lines = [arm_row(analysis, arm) for arm in arms]
        scores = np.array([_number(line[analysis.metric]) for line in lines])
        rows.append(
            {
                "condition": analysis.label(condition),
                "seeds": len(arms),
                analysis.metric: float(scores.mean()),
                "±": float(scores.std(ddof=1)) if len(arms) > 1 else None,
                "loss": _mean(lines, "loss"),
                "shift": max(map(worst_shift, arms)),
                "running mean error": float(np.mean([statistics_error(arm) for arm in arms])),
                "gap": _mean(lines, "train_eval_gap"),
                "calibration error": _mean(lines, "calibration_error"),
                f"steps to {analysis.level:.3f}": _mean(lines, "steps_to_level"),
                f"residues to {analysis.level:.3f}": _mean(lines, "residues_to_level"),
                "µs/residue": _mean(lines, "microseconds_per_residue"),
            }
        )
    return rows


def contrast_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """One line per contrast."""
    return [
        {
            "condition": analysis.label(c.condition),
            "reference": analysis.label(c.reference),
            "seeds": c.num_seeds,
            "difference": c.difference.value,
            "low": c.difference.low,
            "high": c.difference.high,
            "p": c.p_value,
            "p (Holm)": c.adjusted_p,
            "effect size": c.effect_size,
            "detectable": c.detectable,
            "found": "yes" if c.doubt is None else f"no: {c.doubt}",
        }
        for c in analysis.contrasts
    ]


def _mean(lines: Sequence[Row], key: str) -> float | None:
    """Over the arms that have it; None where one of them lacks it."""
    values = [line[key] for line in lines]
    return None if any(v is None for v in values) else float(np.mean(values))


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)


def text_of(value: Any) -> str:
    """A cell as people read it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        size = abs(value)
        if size and (size < 1e-3 or size >= 1e6):
            return f"{value:.1e}"
        return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}" if size >= 10 else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _failures(analysis: Analysis) -> list[str]:
    return [
        f"{condition_of(r).name}, seed {r['seed']}: {r.get('error') or 'not trained'}"
        for r in analysis.results
        if r["status"] != "ok"
    ]


def _markdown(analysis: Analysis, figures: Sequence[str]) -> str:
    lines = [f"# {TITLE}", "", for_markdown(analysis.conclusion), ""]
    lines += [f"- {for_markdown(note)}" for note in analysis.notes]
    if analysis.trained:
        facts = [{"": name, " ": text} for name, text in analysis.trained]
        lines += ["", "## What was trained", "", *_pipes(facts)]
    lines += ["", "## Conditions", "", CONDITIONS_CAPTION, "", *_pipes(condition_rows(analysis))]
    if analysis.contrasts:
        lines += ["", "## Differences", "", CONTRASTS_CAPTION, "", *_pipes(contrast_rows(analysis))]
    lines += ["", "## Figures", ""]
    for name in figures:
        lines += [f"![{TITLES[name]}](figures/{name}.png)", "", CAPTIONS[name], ""]
    failures = _failures(analysis)
    if failures:
        lines += [
            "## Arms without a result",
            "",
            *(f"- {for_markdown(line)}" for line in failures),
            "",
        ]
    return "\n".join(lines)


def _pipes(rows: Sequence[Row]) -> list[str]:
    names = list(rows[0])
    head = ["| " + " | ".join(map(for_markdown, names)) + " |", "|" + " --- |" * len(names)]
    cells = ([_for_pipes(row[name]) for name in names] for row in rows)
    return head + [f"| {' | '.join(line)} |" for line in cells]


def _for_pipes(value: Any) -> str:
    """A cell of a Markdown table; a number holds nothing to escape, its minus is no list."""
    return for_markdown(value) if isinstance(value, str) else text_of(value)


def _page(analysis: Analysis, figures: Mapping[str, str], arms: Sequence[Row]) -> str:
    template = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    failures = _failures(analysis)
    notes = "".join(f"<li>{for_html(note)}</li>" for note in analysis.notes)
    drawn = "".join(
        f"<figure id='{name}'><h3>{for_html(TITLES[name])}</h3>{svg}"
        f"<figcaption>{for_html(CAPTIONS[name])}</figcaption></figure>"
        for name, svg in figures.items()
    )
    marks = [analysis.label(condition_of(result)) for result in analysis.results]
    contrasts = contrast_rows(analysis)
    return template.substitute(
        title=TITLE,
        conclusion=for_html(analysis.conclusion),
        notes=f'<ul class="soft">{notes}</ul>' if notes else "",
        trained=_facts(analysis),
        conditions_caption=for_html(CONDITIONS_CAPTION),
        conditions=_table(condition_rows(analysis)),
        contrasts_caption=for_html(CONTRASTS_CAPTION)
        if contrasts
        else "No two conditions to pair.",
        contrasts=_table(contrasts) if contrasts else "",
        figures=drawn,
        arms=_table(arms, marks, "wide"),
        failures="<h2>Arms without a result</h2><ul>"
        + "".join(f"<li>{for_html(line)}</li>" for line in failures)
        + "</ul>"
        if failures
        else "",
    )


def _facts(analysis: Analysis) -> str:
    """A list of what was trained; nothing where that is not known."""
    if not analysis.trained:
        return ""
    lines = (
        f"<dt>{for_html(name)}</dt><dd>{for_html(text)}</dd>" for name, text in analysis.trained
    )
    return f'<h2>What was trained</h2><dl id="trained">{"".join(lines)}</dl>'


def _table(rows: Sequence[Row], marks: Sequence[str] | None = None, kind: str = "cards") -> str:
    """A sortable table; cells keep their full value for sorting, rows the arm they speak of.

    Args:
        rows: Cells by column.
        marks: The arm of each row; its condition if not given.
        kind: ``cards`` puts each row's cells below each other on a narrow screen; ``wide`` scrolls.
    """
    names = [n for n in dict.fromkeys(name for row in rows for name in row) if n != "error"]
    head = "".join(f'<th><button type="button">{for_html(n)}</button></th>' for n in names)
    body = []
    for number, row in enumerate(rows):
        mark = marks[number] if marks else str(row["condition"])
        cells = "".join(_cell(name, row.get(name)) for name in names)
        body.append(f'<tr data-arm="{for_html(mark)}">{cells}</tr>')
    return (
        f'<div class="scroll {kind}" tabindex="0"><table class="sortable"><thead><tr>{head}</tr>'
        f"</thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(name: str, value: Any) -> str:
    empty = value is None or (isinstance(value, float) and math.isnan(value))
    sorted_by = "" if empty else for_html(str(value))
    return (
        f'<td data-name="{for_html(name)}" data-value="{sorted_by}">{for_html(text_of(value))}</td>'
    )
