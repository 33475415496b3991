"""`seqtrain predict`: predictions for FASTA without labels, in input order."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from seqtrain.cli import options


def predict(
    run: options.RunPath,
    fasta: options.Fasta,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="A .tsv, .parquet or .jsonl file; TSV to stdout if not given."
        ),
    ] = None,
    on_error: options.OnError = "fail",
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Predict for every record; rows keep the order and the number of the input."""
    if on_error not in ("fail", "skip"):
        raise typer.BadParameter("--on-error takes fail or skip.")
    from seqtrain.data.fasta import scan_fasta
    from seqtrain.evaluation.predict import predict_records
    from seqtrain.evaluation.tables import check_format, write_predictions
    from seqtrain.export.bundle import open_run
    from seqtrain.training.device import choose_device, choose_precision

    if output is not None:
        check_format(output)
    loaded = open_run(run)
    chosen = choose_device(device)
    budget = batch_size or loaded.config.batching.max_tokens
    assert budget is not None
    predictions = predict_records(
        loaded.model.to(chosen),
        loaded.tokenizer,
        loaded.codec,
        scan_fasta(fasta),
        max_tokens=budget,
        precision=choose_precision(loaded.config.trainer.precision, chosen),
        on_error=on_error,
    )
    number = write_predictions(output, predictions, loaded.codec)
    if not quiet and output is not None:
        print(f"{number:,} predictions written to {output}", file=sys.stderr)
