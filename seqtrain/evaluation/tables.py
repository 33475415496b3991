"""Tables of predictions as TSV, JSON lines or Parquet, written while they are made."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from seqtrain.data.labels import LabelCodec
from seqtrain.errors import ConfigError
from seqtrain.evaluation.predict import Prediction

FORMATS = (".tsv", ".parquet", ".jsonl")
ROWS_PER_GROUP = 8192


def columns(codec: LabelCodec) -> list[str]:
    """The columns of a prediction table.

    ``prob_<class>`` holds probabilities; a regression's ``prediction`` is in the target's unit; a
    residue task's ``prediction`` is one class per letter, ``-`` where a letter was not read.
    """
    probabilities = [f"prob_{name}" for name in codec.classes]
    has_probabilities = codec.task in ("classification", "multilabel")
    return ["id", "length", "status", "prediction", *(probabilities if has_probabilities else [])]


def row(prediction: Prediction, codec: LabelCodec) -> list[Any]:
    """The cells of one record; None where there is no prediction."""
    head = [prediction.id, prediction.length, prediction.status]
    values = prediction.values
    if values is None:
        return [*head, *([None] * (len(columns(codec)) - 3))]
    match codec.task:
        case "regression":
            return [*head, float(values)]
        case "classification":
            return [*head, codec.classes[int(values.argmax())], *map(float, values)]
        case "multilabel":
            named = [name for name, p in zip(codec.classes, values, strict=True) if p > 0.5]
            return [*head, codec.separator.join(named), *map(float, values)]
    return [*head, _residue_string(values, prediction.kept, codec.classes)]


def _residue_string(values: np.ndarray, kept: np.ndarray | None, classes: Sequence[str]) -> str:
    assert kept is not None
    names = iter(values.argmax(axis=1).tolist())
    per_letter = [classes[next(names)] if keep else "-" for keep in kept.tolist()]
    return ("" if all(len(name) == 1 for name in classes) else ",").join(per_letter)


def write_predictions(
    path: Path | None,
    predictions: Iterable[Prediction],
    codec: LabelCodec,
    extra: tuple[str, Sequence[Any]] | None = None,
) -> int:
    """Write a table; returns the number of rows. An interrupted write leaves no file behind.

    Args:
        path: Ends in .tsv, .parquet or .jsonl; None writes TSV to standard output.
        predictions: In input order.
        codec: Names of classes.
        extra: Name and cells of one more column, for instance the true labels.

    Raises:
        ConfigError: another ending.
    """
    names = columns(codec) + ([extra[0]] if extra else [])
    cells = iter(extra[1]) if extra else None
    rows = (row(p, codec) + ([next(cells)] if cells else []) for p in predictions)
    if path is None:
        return _write_tsv(sys.stdout.write, names, rows, codec)
    check_format(path)
    with _whole_file(path) as partial:
        if path.suffix == ".parquet":
            return _write_parquet(partial, names, rows, codec)
        with partial.open("w", encoding="utf-8") as file:
            if path.suffix == ".jsonl":
                return _write_jsonl(file.write, names, rows)
            return _write_tsv(file.write, names, rows, codec)


def check_format(path: Path) -> None:
    """Refuse a file name that no format goes by, or where no file can be.

    Raises:
        ConfigError: says which there are, or what is in the way.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(
            f"{path}: cannot tell the table's format: expected a name that ends in "
            f"{', '.join(FORMATS)}."
        )
    check_place(path)


def check_place(path: Path) -> None:
    """Refuse a path where no file can be, before anything is computed for it.

    Raises:
        ConfigError: says what is in the way.
    """
    if not path.absolute().parent.is_dir():
        raise ConfigError(
            f"{path}: the folder {path.absolute().parent} does not exist. Make it first."
        )
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; expected the name of a file.")


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _meaning(codec: LabelCodec) -> str:
    match codec.task:
        case "regression":
            return "prediction: value in the target's unit"
        case "classification":
            return "prediction: most probable class; prob_*: probabilities"
        case "multilabel":
            return "prediction: classes with probability above 0.5; prob_*: probabilities"
    return "prediction: most probable class of each residue"


def _write_tsv(
    write: Callable[[str], Any],
    names: Sequence[str],
    rows: Iterable[Sequence[Any]],
    codec: LabelCodec,
) -> int:
    write(f"# {_meaning(codec)}\n")
    write("\t".join(map(_text, names)) + "\n")
    number = 0
    for cells in rows:
        write("\t".join(map(_text, cells)) + "\n")
        number += 1
    return number


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.7g}"
    return str(cell).replace("\t", " ").replace("\n", " ")


def _write_jsonl(
    write: Callable[[str], Any], names: Sequence[str], rows: Iterable[Sequence[Any]]
) -> int:
    number = 0
    for cells in rows:
        write(json.dumps(dict(zip(names, cells, strict=True)), ensure_ascii=False) + "\n")
        number += 1
    return number


def _write_parquet(
    path: Path, names: Sequence[str], rows: Iterable[Sequence[Any]], codec: LabelCodec
) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def kind(name: str) -> Any:
        if name == "length":
            return pa.int64()
        is_value = codec.task == "regression" and name in ("prediction", "target")
        is_number = is_value or name.startswith("prob_")
        return pa.float32() if is_number else pa.string()

    schema = pa.schema(
        [(name, kind(name)) for name in names], metadata={"description": _meaning(codec)}
    )
    number, group = 0, []
    with pq.ParquetWriter(path, schema) as writer:
        for cells in rows:
            group.append(dict(zip(names, cells, strict=True)))
            number += 1
            if len(group) == ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema))
                group = []
        writer.write_table(pa.Table.from_pylist(group, schema))
    return number
