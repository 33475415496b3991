"""`seqtrain bench`: what is claimed about speed, measured on your machine beside its baseline."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seqtrain.cli import options
from seqtrain.escaping import print

if TYPE_CHECKING:
    import torch

    from seqtrain.bench.report import Figure, Report

app = typer.Typer(
    help="Measure speed beside plain torch, in one run, by turns.", no_args_is_help=True
)

Json = Annotated[Path | None, typer.Option("--json", help="Write the figures as JSON.")]
Repetitions = Annotated[int, typer.Option(min=1, help="Medians are over so many.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0: torch's own choice.")]
Precision = Annotated[str, typer.Option(help="float32, bfloat16 or float16, of matrix products.")]


@app.command()
def norms(
    device: options.Device = "cpu",
    precision: Precision = "float32",
    repetitions: Repetitions = 41,
    channels: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Repeatable; 128 on a CPU, 32 to 2048 on a GPU if not given."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Sequences; 32 on a CPU, 256 on a GPU if not given."),
    ] = None,
    length: Annotated[int, typer.Option(min=2, help="Positions of a sequence.")] = 512,
    threads: Threads = 0,
    json: Json = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Masked batch norm beside nn.BatchNorm1d, forward and backward."""
    from seqtrain.bench.norms import NormBench, bench_norms

    chosen, dtype = _where(device, precision, threads, json, overwrite)
    widths = tuple(channels or ((128,) if chosen.type == "cpu" else (32, 128, 512, 2048)))
    settings = NormBench(
        device=chosen,
        precision=dtype,
        repetitions=repetitions,
        batch_size=batch_size or (32 if chosen.type == "cpu" else 256),
        length=length,
        channels=widths,
    )
    _show(bench_norms(settings), json)


@app.command()
def train(
    encoder: Annotated[str, typer.Option(help="cnn or transformer.")] = "cnn",
    device: options.Device = "cpu",
    precision: Precision = "float32",
    repetitions: Repetitions = 7,
    batches: Annotated[int, typer.Option(min=1, max=64, help="Batches per repetition.")] = 8,
    curve_steps: Annotated[
        int, typer.Option(min=0, help="Steps of the learning curves; 0: none.")
    ] = 80,
    compile: Annotated[
        bool, typer.Option("--compile", help="As trainer.compile does, on a GPU.")
    ] = False,
    threads: Threads = 0,
    json: Json = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Packed training beside nn.Conv1d or nn.TransformerEncoder on padded batches."""
    if encoder not in ("cnn", "transformer"):
        raise typer.BadParameter("--encoder takes cnn or transformer.")
    from seqtrain.bench.train import TrainBench, bench_train

    chosen, dtype = _where(device, precision, threads, json, overwrite)
    settings = TrainBench(
        encoder=encoder,
        device=chosen,
        precision=dtype,
        compile=compile,
        repetitions=repetitions,
        num_batches=batches,
        curve_steps=curve_steps,
    )
    _show(bench_train(settings), json)


@app.command()
def data(
    records: Annotated[int, typer.Option(min=1, help="Records of the FASTA file.")] = 2000,
    device: options.Device = "cpu",
    precision: Precision = "float32",
    repetitions: Repetitions = 3,
    threads: Threads = 0,
    json: Json = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Reading, tokenizing, planning, collating, and predict beside a padded loop in file order."""
    from seqtrain.bench.data import DataBench, bench_data

    chosen, dtype = _where(device, precision, threads, json, overwrite)
    settings = DataBench(
        device=chosen, precision=dtype, repetitions=repetitions, num_records=records
    )
    _show(bench_data(settings), json)


def _where(
    device: str, precision: str, threads: int, json: Path | None, overwrite: bool
) -> "tuple[torch.device, torch.dtype]":
    """Where it runs and in what, if its figures can be written at all."""
    import torch

    from seqtrain.config import PRECISIONS, one_of
    from seqtrain.data.outputs import Output, check_outputs
    from seqtrain.data.own_files import is_report
    from seqtrain.training.device import choose_device, choose_training_precision

    written = Output("--json", json, is_report("command", "bench", "figures"), streams=True)
    check_outputs([written], [], overwrite=overwrite)
    if threads:
        torch.set_num_threads(threads)
    one_of(precision, "--precision", PRECISIONS)
    chosen = choose_device(device)
    return chosen, choose_training_precision(precision, chosen)


def _show(report: "Report", json: Path | None) -> None:
    from seqtrain.data.outputs import write_report
    from seqtrain.reporting import stdout_console, table, to_json

    if json is not None:
        found = {"command": " ".join(["seqtrain", *sys.argv[1:]]), **report.to_dict()}
        write_report(json, to_json(found, indent=1) + "\n")
    for name, described in (("machine", report.machine), ("settings", report.settings)):
        print(f"{name}: {', '.join(f'{k} {v}' for k, v in described.items())}", file=sys.stderr)
    rows = [
        (figure.name, figure.value, figure.unit, _target(figure), _verdict(figure.holds))
        for figure in report.figures
    ]
    columns = ("figure", "value", "unit", "target", "")
    stdout_console().print(table(f"bench {report.bench}", columns, rows))


def _target(figure: "Figure") -> str:
    if figure.target is None:
        return ""
    return f"{'≤' if figure.at_most else '≥'} {figure.target:g}"


def _verdict(holds: bool | None) -> str:
    return {None: "", True: "holds", False: "missed"}[holds]
