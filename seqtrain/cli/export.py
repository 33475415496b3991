"""`seqtrain export`: a trained model as files that work elsewhere."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seqtrain.cli import completion, options
from seqtrain.cli.startup import load_torch
from seqtrain.escaping import print

if TYPE_CHECKING:
    from seqtrain.export.program import Runner
    from seqtrain.training.checkpoint import LoadedRun

FORMATS = ("bundle", "onnx", "torch")


def export(
    run: options.RunPath,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Output: a folder or .zip, an .onnx or a .pt2 file."),
    ],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            autocompletion=completion.one_of(*FORMATS),
            help="bundle: everything that seqtrain needs; onnx: a graph for any runtime; "
            "torch: a program that torch runs without seqtrain.",
        ),
    ] = "bundle",
    check: Annotated[
        list[str] | None,
        typer.Option(
            "--check",
            metavar="FASTA",
            help="Predict these records with both, and fail if results differ; repeatable.",
        ),
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Write a trained model as files that work on another machine."""
    if format not in FORMATS:
        raise typer.BadParameter(f"--format takes {', '.join(FORMATS)}.")
    load_torch()
    from seqtrain.data.outputs import Output, check_outputs
    from seqtrain.errors import ExportError
    from seqtrain.export.bundle import open_run
    from seqtrain.export.parity import TOLERANCE, check_parity

    if output.exists():
        raise ExportError(f"{output}: exists already. Remove it, or choose another --output.")
    check_outputs([Output("--output", output)], [run, *(check or [])])
    loaded = open_run(run)
    written = _write(run, loaded, output, format)
    if not quiet:
        print(f"written: {output}", file=sys.stderr)
    if check:
        found = check_parity(loaded, written, check)
        print(
            f"{'passed' if found.passed else 'FAILED'}: largest difference {found.worst:.2e} over "
            f"{found.records:,} records, at {found.id!r} (allowed: {TOLERANCE:g})"
        )
        if not found.passed:
            raise ExportError(
                f"{output}: gives other results than {run}: {found.worst:.2e} at {found.id!r}, "
                f"expected at most {TOLERANCE:g}. Do not use it."
            )


def _write(run: Path, loaded: "LoadedRun", output: Path, format: str) -> "Runner":
    """Write the export; returns what computes its results, read back from the file."""
    from seqtrain.export.bundle import read_bundle_program, write_bundle
    from seqtrain.export.onnx import read_onnx, write_onnx
    from seqtrain.export.program import read_program, write_program

    match format:
        case "onnx":
            write_onnx(loaded, output)
            return read_onnx(output)
        case "torch":
            write_program(loaded, output)
            return read_program(output)
    write_bundle(run, output)
    return read_bundle_program(output)
