"""`seqtrain eval`: score a trained model on labelled FASTA."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqtrain.cli import options
from seqtrain.cli.startup import load_torch

if TYPE_CHECKING:
    from rich.console import Console


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
    uncalibrated: options.Uncalibrated = False,
    overwrite: options.Overwrite = False,
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Score a trained model: metrics with 95 % intervals, by length, beside baselines."""
    load_torch()
    from seqtrain.data.labels import is_regression
    from seqtrain.data.outputs import Output, check_outputs, write_report
    from seqtrain.data.own_files import is_prediction_table, is_report
    from seqtrain.data.prepare import read_for_model
    from seqtrain.evaluation.runs import evaluate_run, write_outputs
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
    loaded = open_run(run, calibrated=not uncalibrated)
    loaded.model.to(choose_device(device))
    dataset = read_for_model(
        fasta,
        loaded.tokenizer,
        loaded.codec,
        labels=labels or (),
        label_column=label_column or loaded.config.data.label_column,
        id_column=id_column or loaded.config.data.id_column,
        max_length=loaded.config.data.max_length,
        overlong=loaded.config.data.overlong,
    )
    training = read_training_part(run)
    scored, outputs = evaluate_run(loaded, dataset, training, max_tokens=batch_size)
    if output is not None:
        write_outputs(output, outputs, dataset, loaded)
    words, error = calibration_words([loaded.calibration]), None
    if not is_regression(loaded.codec.task):
        assert dataset.targets is not None
        error = calibration_error(loaded.codec.task, outputs.values, dataset.targets)
    if json is not None:
        found = {**scored.to_dict(), "probabilities": words, "calibration_error": error}
        write_report(json, to_json(found, indent=1) + "\n")
    if not quiet:
        print_evaluation(stdout_console(), scored.to_dict(), ", ".join(fasta))
        if error is not None:
            said = f"probabilities: {words}; expected calibration error {error:.3g}"
            stdout_console().print(said, markup=False, soft_wrap=True)


def print_evaluation(console: "Console", scored: dict[str, Any], title: str) -> None:
    """Tables of metrics beside baselines, of lengths, and of confusions.

    Args:
        console: Of standard output.
        scored: ``Evaluation.to_dict()``.
        title: What was scored.
    """
    from seqtrain.reporting import table

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
    names = [name.replace("_", " ") for name in baselines]
    columns = ("metric", "value", "95 % interval", *names)
    console.print(table(f"{title}: {scored['n']:,} records", columns, rows))
    bins = scored["by_length"]
    keys = [key for key in bins[0] if key not in ("shortest", "longest")]
    by_length = [(f"{b['shortest']}–{b['longest']}", *(b[k] for k in keys)) for b in bins]
    console.print(table("by length", ("residues", *keys), by_length))
    if scored["confusion"] is not None:
        confusion = [
            (name, *counts)
            for name, counts in zip(scored["classes"], scored["confusion"], strict=True)
        ]
        console.print(table("confusion", ("true \\ predicted", *scored["classes"]), confusion))
