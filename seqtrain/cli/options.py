"""Options that several verbs share."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from seqtrain.cli import completion
from seqtrain.errors import ConfigError, SeqtrainError
from seqtrain.escaping import print

if TYPE_CHECKING:
    from collections.abc import Mapping

    from seqtrain.config import RunConfig
    from seqtrain.data.lengths import LengthRule

FILE_SETTINGS = ("train", "valid", "test", "labels", "splits")
"""Settings of ``data`` that are lists of files."""

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
    typer.Option(
        "--valid",
        metavar="FASTA",
        help="Validation file or store: early stopping and checkpoint choice.",
    ),
]
TestFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--test", metavar="FASTA", help="Test file or store: scored once, after training."
    ),
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
SplitColumn = Annotated[
    str | None,
    typer.Option(
        help="Column, or key in headers, that says train, valid or test; '' reads neither."
    ),
]
SplitFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--splits",
        metavar="FILE",
        help="Table of record id and train, valid or test, as `data split` writes it.",
    ),
]
OnMissing = Annotated[
    str | None,
    typer.Option("--on-error", help="Records without a label: fail, or skip to leave them out."),
]
Alphabet = Annotated[str | None, typer.Option(help="protein, dna or rna; detected if not given.")]
Task = Annotated[
    str | None, typer.Option(help="How labels are read; inferred from them if not given.")
]
Decimal = Annotated[
    str | None,
    typer.Option(help="Decimal sign of numbers: point or comma; inferred if not given."),
]
ConfigName = Annotated[
    str,
    typer.Option(
        "--config-name",
        "-n",
        help="A config or experiment in conf/.",
        autocompletion=completion.config_names,
    ),
]
ConfigDir = Annotated[
    Path | None,
    typer.Option("--config-dir", "-d", help="Your own config folder, searched first."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings in Hydra's grammar.",
        autocompletion=completion.settings,
    ),
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
        autocompletion=completion.one_of("error", "truncate", "skip", "whole"),
        help="Records longer than data.max_length of the training; as there if not given.",
    ),
]
Window = Annotated[
    int | None,
    typer.Option("--window", min=1, help="Read longer records in windows of so many residues."),
]
Overlap = Annotated[
    int | None,
    typer.Option(
        "--overlap", min=0, help="Residues that windows share; a quarter of one if not given."
    ),
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


class DataOptions(NamedTuple):
    """Values of the options that name data, under the names of the settings."""

    train: list[str] | None
    valid: list[str] | None
    test: list[str] | None
    labels: list[str] | None
    splits: list[str] | None
    label_column: str | None
    id_column: str | None
    split_column: str | None
    on_error: str | None = None


def data_values(given: DataOptions, overrides: Sequence[str] | None) -> dict[str, Any]:
    """Settings by dotted name from the options.

    A training file replaces all files that the config names: nobody wants their own sequences
    tested on the bundled ones. What overrides name stays.

    Raises:
        ConfigError: An option and an override say the same thing.
    """
    from seqtrain.overrides import override_key

    overridden = {override_key(item): item for item in overrides or []}
    values: dict[str, Any] = {}
    for name, value in given._asdict().items():
        key, option = f"data.{name}", "--" + name.replace("_", "-")
        if value is not None and key in overridden:
            raise ConfigError(
                f"{option} replaces {key}, and {overridden[key]} is given too. Leave one of them "
                f"out{'; ' + option + ' can be repeated' if isinstance(value, list) else ''}."
            )
        if isinstance(value, str):
            values[key] = value
        elif name in FILE_SETTINGS and (value or (given.train and key not in overridden)):
            values[key] = [absolute(path) for path in value or []]
    return values


def given_keys(values: "Mapping[str, Any]", overrides: Sequence[str]) -> set[str]:
    """Dotted names of the settings that options and overrides give."""
    from seqtrain.overrides import override_key

    return {*(key for key, value in values.items() if value != []), *map(override_key, overrides)}


def replaced_files(
    values: "Mapping[str, Any]", config_name: str, config_dir: Path | None, overrides: Sequence[str]
) -> list[str]:
    """A warning of the files that a config of the user's own names, and ``--train`` replaces."""
    from seqtrain.compose import load_config

    left = [name for name in FILE_SETTINGS if values.get(f"data.{name}") == []]
    if not left or (config_name == "config" and config_dir is None):
        return []
    own = load_config(config_name, overrides, config_dir=config_dir).data
    gone = {name: getattr(own, name) for name in left}
    named = [f"data.{k} ({', '.join(v)})" for k, v in gone.items() if v and "bundled:" not in v[0]]
    if not named:
        return []
    return [
        f"--train replaces all files that {config_name!r} names: {', '.join(named)} is not used. "
        "Name these files as options too if you want them"
    ]


def with_own_data(overrides: Sequence[str] | None, train: Sequence[str] | None) -> list[str]:
    """The overrides, with the bundled data and its short training left out for files given."""
    from seqtrain.overrides import override_key

    keys = {override_key(item) for item in overrides or []}
    own = (train or "data.train" in keys) and "data" not in keys
    return [*(["data=files"] if own else []), *(overrides or [])]


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


@contextmanager
def named_as_options() -> Iterator[None]:
    """Names settings of `seqtrain train` in messages by the options of these verbs."""
    try:
        yield
    except SeqtrainError as error:
        text = re.sub(r"(?<![\w.])(?:data\.)?(task|decimal)=(?=\w)", r"--\1 ", str(error))
        raise type(error)(text) from None


def say_labels(report: dict[str, Any]) -> None:
    """The columns taken, and the task with its reason."""
    for line in report.get("label_columns", []):
        print(f"labels: {line}", file=sys.stderr)
    print(f"task: {report['task']['name']} ({report['task']['how']})", file=sys.stderr)
