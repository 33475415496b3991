"""Options that several verbs share."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from seqtrain.config import RunConfig
    from seqtrain.data.lengths import LengthRule

TrainFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--train",
        metavar="FASTA",
        help="Train on this file, or on a store of `data tokenize`; repeatable; - is stdin.",
    ),
]
ValidFiles = Annotated[
    list[str] | None,
    typer.Option("--valid", metavar="FASTA", help="Stop early and choose by this file or store."),
]
TestFiles = Annotated[
    list[str] | None,
    typer.Option("--test", metavar="FASTA", help="Score this file or store once, after training."),
]
LabelFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--labels",
        metavar="FILE",
        help="TSV or CSV joined by record id, or a labels FASTA; without it: header attributes.",
    ),
]
LabelColumn = Annotated[str | None, typer.Option(help="Column that holds the label or target.")]
IdColumn = Annotated[str | None, typer.Option(help="Column that holds the record ids.")]
SplitColumn = Annotated[str | None, typer.Option(help="Column that says train, valid or test.")]
ConfigName = Annotated[
    str, typer.Option("--config-name", "-n", help="A config or experiment in conf/.")
]
ConfigDir = Annotated[
    Path | None,
    typer.Option("--config-dir", "-d", help="Your own config folder, searched first."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings in Hydra's grammar."),
]
Fasta = Annotated[list[str], typer.Argument(metavar="FASTA...", help="Files; - is stdin.")]
RunPath = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory, or an exported bundle.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only results.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="Positions per batch; as in training if not given."),
]
Uncalibrated = Annotated[
    bool,
    typer.Option("--uncalibrated", help="Probabilities as trained, not by temperature scaling."),
]
OnError = Annotated[
    str, typer.Option("--on-error", help="fail, or skip: say in `status` what is wrong.")
]
Overlong = Annotated[
    str | None,
    typer.Option(
        "--overlong",
        metavar="error|truncate|skip|whole",
        help="Records longer than data.max_length of the training; as there if not given.",
    ),
]
Window = Annotated[
    int | None,
    typer.Option("--window", min=1, help="Read longer records in windows of so many residues."),
]
Overlap = Annotated[
    int | None,
    typer.Option("--overlap", min=0, help="Of windows; a quarter of one if not given."),
]
Warnings = Annotated[
    bool,
    typer.Option(
        "--warnings", help="A column on what makes a record unlike those of the training."
    ),
]


def check_on_error(value: str) -> None:
    """Refuse another policy than the two that there are.

    Raises:
        typer.BadParameter: says them.
    """
    if value not in ("fail", "skip"):
        raise typer.BadParameter("--on-error takes fail or skip.")


def say_left_out(
    lengths: "LengthRule", counts: "Mapping[str, int]", total: int, missing: int, fate: str
) -> None:
    """Warn of records that were cut, left out for their length, or could not be used.

    Args:
        lengths: How over-long records are read.
        counts: How many records got each warning.
        total: Records of the input.
        missing: How many of them have no result, whatever the reason.
        fate: What became of these, for instance ``have no prediction``.
    """
    for sentence in lengths.sentences(counts, total):
        print(f"warning: {sentence}", file=sys.stderr)
    bad = missing - counts.get("left out", 0)
    if bad > 0:
        print(f"warning: {bad:,} of {total:,} records cannot be used and {fate}", file=sys.stderr)


Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace output files that seqtrain did not write; never an input."
    ),
]


def data_values(
    train: list[str] | None,
    valid: list[str] | None,
    test: list[str] | None,
    labels: list[str] | None,
    label_column: str | None,
    id_column: str | None,
    split_column: str | None,
) -> dict[str, Any]:
    """Settings by dotted name from the options.

    A training file replaces all files that the config names: nobody wants their own sequences
    tested on the bundled ones.
    """
    values: dict[str, Any] = {}
    parts = {"train": train, "valid": valid, "test": test, "labels": labels}
    for name, paths in parts.items():
        if paths or train:
            values[f"data.{name}"] = [absolute(path) for path in paths or []]
    columns = {
        "label_column": label_column,
        "id_column": id_column,
        "split_column": split_column,
    }
    values.update({f"data.{k}": v for k, v in columns.items() if v is not None})
    return values


def with_own_data(overrides: list[str] | None, train: list[str] | None) -> list[str]:
    """The overrides, with the bundled data and its short training left out for files given."""
    chosen = any(item.lstrip("+~").startswith("data=") for item in overrides or [])
    return [*(["data=files"] if train and not chosen else []), *(overrides or [])]


def input_files(config: "RunConfig", config_dir: Path | None) -> list[str]:
    """The files that a training reads: data, settings, and the run that its encoder comes from."""
    values = [value for value in vars(config.data).values() if value is not None]
    texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
    found = [text for text in texts if isinstance(text, str) and Path(text).is_file()]
    if config.encoder.pretrained is not None:
        found.append(config.encoder.pretrained)
    return found + [str(path) for path in (config_dir.glob("*.yaml") if config_dir else ())]


def absolute(path: str) -> str:
    """The path as a run keeps it, so that --resume works from any folder."""
    return path if path == "-" or path.startswith("bundled:") else str(Path(path).absolute())
