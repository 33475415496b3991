"""`seqtrain eval`: score a trained model on labelled FASTA."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqtrain.cli import options
from seqtrain.cli.startup import load_torch
from seqtrain.escaping import print
from seqtrain.words import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from seqtrain.data.fasta import Reject
    from seqtrain.data.for_model import LabelledRecords
    from seqtrain.data.lengths import LengthRule
    from seqtrain.evaluation.score import Evaluation, TrainingPart
    from seqtrain.training.checkpoint import LoadedRun


def evaluate(
    run: options.RunPath,
    fasta: options.Fasta,
    labels: options.LabelFiles = None,
    label_column: options.LabelColumn = None,
    id_column: options.IdColumn = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Predictions, .tsv, .parquet or .jsonl, in input order."
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the numbers as JSON.")] = None,
    window: options.Window = None,
    overlap: options.Overlap = None,
    overlong: options.Overlong = None,
    uncalibrated: options.Uncalibrated = False,
    warnings: options.Warnings = False,
    on_error: options.OnError = "fail",
    overwrite: options.Overwrite = False,
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Score a trained model: metrics with 95 % intervals, by length, beside baselines."""
    options.check_on_error(on_error)
    load_torch()
    from seqtrain.data.for_model import read_for_model
    from seqtrain.data.labels import is_regression
    from seqtrain.data.outputs import Output, check_outputs, write_report
    from seqtrain.data.own_files import is_prediction_table, is_report
    from seqtrain.evaluation.predict import length_rule
    from seqtrain.evaluation.runs import evaluate_run, write_outputs
    from seqtrain.evaluation.windows import Windows
    from seqtrain.evaluation.writing import check_format
    from seqtrain.export.bundle import open_run, read_training_part
    from seqtrain.reporting import stdout_console, to_json
    from seqtrain.training.calibration import calibration_error, calibration_words
    from seqtrain.training.device import choose_device

    if output is not None:
        check_format(output)
    check_outputs(
        [
            Output("--output", output, is_prediction_table),
            Output("--json", json, is_report("n", "task", "metrics"), streams=True),
        ],
        [run, *fasta, *(labels or [])],
        overwrite=overwrite,
    )
    windows = Windows.of(window, overlap)
    loaded = open_run(run, calibrated=not uncalibrated)
    lengths = length_rule(loaded, overlong, windows, choose_device(device))
    loaded.model.to(choose_device(device))
    records = read_for_model(
        fasta,
        loaded.tokenizer,
        loaded.codec,
        labels=labels or (),
        label_column=label_column or loaded.config.data.label_column,
        id_column=id_column or loaded.config.data.id_column,
        decimal=loaded.config.data.decimal,
        lengths=lengths,
        on_error=on_error,
    )
    if not quiet:
        _say_what_was_read(records, lengths, loaded.codec.task)
    dataset, training = records.dataset, read_training_part(run)
    scored, outputs = evaluate_run(
        loaded, dataset, training, max_tokens=batch_size, windows=windows
    )
    cautions = _cautions(loaded, records, scored, training, fasta)
    for caution in () if quiet else cautions:
        print(f"warning: {caution}", file=sys.stderr)
    if output is not None:
        write_outputs(
            output,
            outputs,
            dataset,
            loaded,
            rows=records.rows(),
            kept=records.kept,
            warnings=_row_warnings(records, loaded) if warnings else None,
            lengths=lengths,
            windows=windows,
        )
    words, error = calibration_words([loaded.calibration]), None
    if not is_regression(loaded.codec.task):
        assert dataset.targets is not None
        error = calibration_error(loaded.codec.task, outputs.values, dataset.targets)
    if json is not None:
        found = {
            **scored.to_dict(),
            "num_records": records.total,
            "left_out": records.reasons(),
            "truncated": len(records.truncated),
            "labels": "; ".join(records.label_columns),
            "probabilities": words,
            "calibration_error": error,
            "warnings": cautions,
        }
        write_report(json, to_json(found, indent=1) + "\n")
    if json is not None and _is_stdout(json):
        return
    title = ", ".join(fasta)
    if records.rejects:
        reasons = ", ".join(f"{number:,} {name}" for name, number in records.reasons().items())
        title += f", {reasons} of {records.total:,} records left out"
    if records.truncated:
        title += f", {len(records.truncated):,} cut to {lengths.max_length} residues"
    print_evaluation(stdout_console(), scored.to_dict(), title)
    if error is not None:
        said = f"probabilities: {words}; expected calibration error {error:.3g}"
        stdout_console().print(said, markup=False, soft_wrap=True)


def _cautions(
    loaded: "LoadedRun",
    records: "LabelledRecords",
    scored: "Evaluation",
    training: "TrainingPart",
    fasta: list[str],
) -> list[str]:
    """Reasons why the score is worth less than it seems."""
    from seqtrain.data.files import file_facts, shown
    from seqtrain.evaluation.applicability import alphabet_warning

    found = [alphabet_warning(records.records.sequences, loaded.tokenizer, "records")]
    if scored.copies is not None:
        found.append(scored.copies.sentence(scored.n, scored.metrics, scored.task))
    if training.hashes is None:  # a run of before: whole files are all that can be compared
        read = loaded.data.get("files", {}).get("train", [])
        digests = {file.get("sha256") for file in read} - {None}
        found += [
            f"{shown(path)}: is a file that the model was trained on"
            for path in fasta
            if file_facts(path).get("sha256") in digests
        ]
    return [caution for caution in found if caution is not None]


def _is_stdout(path: Path) -> bool:
    """True if a file is standard output, as ``/dev/stdout`` is: one reader wants one form."""
    return path.exists() and not path.is_file() and os.path.samestat(path.stat(), os.fstat(1))


def _say_what_was_read(records: "LabelledRecords", lengths: "LengthRule", task: str) -> None:
    print(f"task: {task}, that of the model", file=sys.stderr)
    for line in records.label_columns:
        print(f"labels: {line}", file=sys.stderr)
    for note in records.notes:
        print(f"warning: {note}", file=sys.stderr)
    missing = len(records.rejects)
    options.say_left_out(lengths, records.counts, records.total, missing, "are not scored")


def _row_warnings(
    records: "LabelledRecords", loaded: "LoadedRun"
) -> "Callable[[int | Reject], tuple[str, ...]]":
    """Cells of the column ``warning``, as in a table of `predict`."""
    from seqtrain.data.lengths import TRUNCATED
    from seqtrain.evaluation.applicability import TrainingRange

    known, sequences = TrainingRange.from_report(loaded.data), records.records.sequences
    tokens = [sequences.residues(i) for i in range(len(sequences))]
    unlike = known.warnings(tokens, loaded.tokenizer) if known else [()] * len(tokens)

    def warnings(row: "int | Reject") -> tuple[str, ...]:
        if not isinstance(row, int):
            return records.warnings_of(row)
        return unlike[row] + (TRUNCATED,) * (sequences.ids[row] in records.truncated)

    return warnings


def print_evaluation(console: "Console", scored: dict[str, Any], title: str) -> None:
    """Tables of metrics beside baselines, of lengths, and of confusions.

    Args:
        console: Of standard output.
        scored: ``Evaluation.to_dict()``.
        title: What was scored.
    """
    from seqtrain.evaluation.score import confusion_counts
    from seqtrain.reporting import confusion_table, table

    baselines = scored["baselines"]
    rows = [
        (
            name,
            m["value"],
            f"{m['low']:.3g} to {m['high']:.3g}",
            *(b.get(name, float("nan")) for b in baselines.values()),
        )
        for name, m in scored["metrics"].items()
    ]
    numbers = "mae" in scored["metrics"]  # of numbers the commonest guess is their mean
    names = [
        "mean" if numbers and name == "majority" else name.replace("_", " ") for name in baselines
    ]
    columns = ("metric", "value", "95 % interval", *names)
    console.print(table(f"{title}: {counted(scored['n'], 'record')}", columns, rows))
    bins = scored["by_length"]
    keys = [key for key in bins[0] if key not in ("shortest", "longest")]
    by_length = [(f"{b['shortest']}–{b['longest']}", *(b[k] for k in keys)) for b in bins]
    console.print(table("by length", ("residues", *keys), by_length))
    if scored["classes"] and (counts := confusion_counts(scored)) is not None:
        console.print(confusion_table(scored["classes"], counts, console.width))
