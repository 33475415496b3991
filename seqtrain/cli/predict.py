"""`seqtrain predict`: predictions for FASTA without labels, in input order."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqtrain.cli import options
from seqtrain.cli.progress import Progress
from seqtrain.cli.startup import load_torch
from seqtrain.escaping import print
from seqtrain.words import counted

if TYPE_CHECKING:
    from seqtrain.data.fasta import Record, Reject
    from seqtrain.data.lengths import LengthRule
    from seqtrain.evaluation.predict import Predictor
    from seqtrain.evaluation.tables import Table
    from seqtrain.evaluation.windows import Windows
    from seqtrain.training.checkpoint import LoadedRun

    Answer = tuple[list[Any], tuple[str, ...]]
    """The cells of a row, and the warnings of its record."""


def predict(
    run: options.RunPath,
    fasta: options.Fasta,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="A .tsv, .parquet or .jsonl file; TSV to stdout if not given."
        ),
    ] = None,
    ensemble: Annotated[
        list[Path] | None,
        typer.Option(
            "--ensemble",
            metavar="RUN",
            help="Add a model to the ensemble; repeatable. Results are means, with spread.",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", min=1, help="Report only the K most probable classes."),
    ] = None,
    window: options.Window = None,
    overlap: options.Overlap = None,
    overlong: options.Overlong = None,
    uncalibrated: options.Uncalibrated = False,
    warnings: options.Warnings = False,
    on_error: options.OnError = "fail",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted .tsv or .jsonl.")
    ] = False,
    overwrite: options.Overwrite = False,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Processes that share the work.")
    ] = 1,
    batch_size: options.BatchSize = None,
    device: Annotated[
        str,
        typer.Option(
            help="auto, cpu, cuda, cuda:N or mps; cuda:0,cuda:1 has a process on each of them."
        ),
    ] = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Predict for every record; rows keep the order and the number of the input."""
    options.check_on_error(on_error)
    if resume and output is None:
        raise typer.BadParameter("--resume needs --output: the table to continue.")
    devices = device.split(",")
    if workers > 1 and len(devices) > 1:
        raise typer.BadParameter("--workers and several devices exclude each other.")
    load_torch()
    from seqtrain.data.fasta import scan_fasta
    from seqtrain.data.outputs import Output, check_outputs
    from seqtrain.data.own_files import is_prediction_table
    from seqtrain.evaluation.predict import length_rule
    from seqtrain.evaluation.windows import Windows
    from seqtrain.evaluation.writing import check_format, read_begun, skip_written, write_rows

    windows = Windows.of(window, overlap)
    if output is not None:
        check_format(output, resume=resume)
    read: list[str | Path] = [*fasta, run, *(ensemble or [])]
    check_outputs([Output("--output", output, is_prediction_table)], read, overwrite=overwrite)
    _check_devices(devices)
    members = _open([run, *(ensemble or [])], uncalibrated)
    lengths = length_rule(members[0], overlong, windows)
    table = _table(members, top_k, windows, warnings, lengths)
    progress = Progress(fasta, quiet)
    entries, done = progress.watch(scan_fasta(fasta)), 0
    resume = resume and output is not None and read_begun(output, table)
    if resume and output is not None:
        done, entries = skip_written(entries, output)
    settings = {
        "max_tokens": batch_size,
        "on_error": on_error,
        "windows": windows,
        "overlong": overlong,
    }
    devices = devices * workers
    if len(devices) == 1:
        answers = _answers(_predictor(members, devices[0], settings), table, entries)
    else:
        start = partial(_start, [run, *(ensemble or [])], uncalibrated, settings, table)
        answers = _shared_out(entries, start, devices)
    counts: Counter[str] = Counter()
    try:
        rows = _tally(progress.count(answers), counts)
        number = write_rows(output, rows, table, resume=resume)
    except KeyboardInterrupt:
        _say_how_to_go_on(output, done + progress.rows)
        raise typer.Exit(130) from None
    if not quiet:
        _report(members[0], lengths, counts, number)
        if output is not None:
            print(f"{done + number:,} predictions written to {output}", file=sys.stderr)


def _check_devices(devices: Sequence[str]) -> None:
    from seqtrain.training.device import choose_device

    for device in devices:
        choose_device(device)


def _open(runs: Sequence[Path], uncalibrated: bool) -> "list[LoadedRun]":
    from seqtrain.evaluation.predict import check_ensemble
    from seqtrain.export.bundle import open_run

    members = [open_run(run, calibrated=not uncalibrated) for run in runs]
    check_ensemble({str(run): member for run, member in zip(runs, members, strict=True)})
    return members


def _table(
    members: "list[LoadedRun]",
    top_k: int | None,
    windows: "Windows | None",
    warnings: bool,
    lengths: "LengthRule",
) -> "Table":
    from seqtrain.evaluation.predict import fingerprint
    from seqtrain.evaluation.tables import Table
    from seqtrain.training.calibration import calibration_words

    return Table(
        members[0].codec,
        calibration_words([member.calibration for member in members]),
        len(members),
        top_k,
        windows,
        warnings,
        model=fingerprint(members),
        lengths=lengths,
    )


def _predictor(members: "list[LoadedRun]", device: str, settings: dict[str, Any]) -> "Predictor":
    from seqtrain.evaluation.predict import Predictor
    from seqtrain.training.device import choose_device

    return Predictor.of(members, choose_device(device), **settings)


def _answers(
    predictor: "Predictor", table: "Table", entries: "Iterator[Record | Reject]"
) -> "Iterator[Answer]":
    for prediction in predictor(entries):
        yield table.row(prediction), prediction.warnings


def _start(
    runs: Sequence[Path],
    uncalibrated: bool,
    settings: dict[str, Any],
    table: "Table",
    device: str,
) -> "Callable[[list[Record | Reject]], list[Answer]]":
    """What a worker process does with some entries; it loads the models for itself."""
    predictor = _predictor(_open(runs, uncalibrated), device, settings)
    return lambda chunk: list(_answers(predictor, table, iter(chunk)))


def _shared_out(
    entries: "Iterator[Record | Reject]",
    start: "Callable[[str], Callable[[list[Record | Reject]], list[Answer]]]",
    devices: Sequence[str],
) -> "Iterator[Answer]":
    from seqtrain.evaluation.chunks import SHARED_RECORDS, SHARED_RESIDUES, in_chunks
    from seqtrain.evaluation.parallel import in_processes

    chunks = in_chunks(entries, SHARED_RECORDS, SHARED_RESIDUES)
    for answers in in_processes(chunks, start, devices):
        yield from answers


def _tally(answers: "Iterable[Answer]", counts: Counter[str]) -> Iterator[list[Any]]:
    for row, warnings in answers:
        counts.update(warnings)
        counts["ok"] += row[2] == "ok"
        yield row


def _say_how_to_go_on(output: Path | None, rows: int) -> None:
    from seqtrain.evaluation.writing import RESUMABLE

    said = "seqtrain: interrupted"
    if output is not None and output.suffix in RESUMABLE:
        said += f" after {counted(rows, 'row')}; continue with the same command and --resume"
    print(f"{said}.", file=sys.stderr)


def _report(loaded: "LoadedRun", lengths: "LengthRule", counts: Counter[str], number: int) -> None:
    """What there is to say of all records together."""
    from seqtrain.evaluation.applicability import TrainingRange

    options.say_left_out(lengths, counts, number, number - counts["ok"], "have no prediction")
    known = TrainingRange.from_report(loaded.data)
    if known is not None:
        alphabet = loaded.tokenizer.alphabet.name
        for sentence in known.sentences(counts, counts["ok"], alphabet):
            print(f"warning: {sentence}", file=sys.stderr)
