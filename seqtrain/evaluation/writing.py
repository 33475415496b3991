"""Tables as TSV, JSON lines or Parquet, written row by row, and continued after an interrupt."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from seqtrain.data.fasta import Record, Reject
from seqtrain.data.files import check_place, replace_file
from seqtrain.errors import ConfigError
from seqtrain.escaping import for_table
from seqtrain.evaluation.predict import Prediction
from seqtrain.evaluation.tables import INTEGER, NUMBER, WIDE, Table

FORMATS = (".tsv", ".parquet", ".jsonl")
RESUMABLE = (".tsv", ".jsonl")
ROWS_PER_GROUP = 8192

Row = Sequence[Any]


def write_predictions(
    path: Path | None,
    predictions: Iterable[Prediction],
    table: Table,
    extra: Iterable[Sequence[Any]] | None = None,
) -> int:
    """Write a table; returns the number of rows.

    Args:
        path: As for :func:`write_rows`.
        predictions: In input order.
        table: Its form.
        extra: The cells of ``table.extra`` for each row, for instance the true label.
    """
    if extra is None:
        return write_rows(path, (table.row(each) for each in predictions), table)
    pairs = zip(predictions, extra, strict=True)
    return write_rows(path, (table.row(each, cells) for each, cells in pairs), table)


def write_rows(
    path: Path | None, rows: Iterable[Row], table: Table, *, resume: bool | None = None
) -> int:
    """Write rows while they are made; returns how many.

    They go to ``PATH.partial``, which takes its place when it is whole.

    Args:
        path: Ends in .tsv, .parquet or .jsonl; None writes TSV to standard output.
        rows: From ``Table.row``.
        table: Their form.
        resume: True adds to what :func:`read_begun` found. False begins anew, and interrupted
            leaves TSV or JSON lines behind for it; None leaves nothing.

    Raises:
        ConfigError: another ending.
    """
    if path is None:
        return _write_text(sys.stdout.write, chain(_tsv_head(table), map(_tsv, rows))) - 2
    check_format(path)
    if path.suffix == ".parquet":
        with _whole_file(path) as partial:
            return _write_parquet(partial, rows, table)
    is_tsv = path.suffix == ".tsv"
    lines = map(_tsv, rows) if is_tsv else (_jsonl(table.columns, row) for row in rows)
    heading = list(_tsv_head(table)) if is_tsv and not resume else []
    with (
        _whole_file(path, table, resume) as partial,
        partial.open("a" if resume else "w", encoding="utf-8", newline="\n") as file,
    ):
        return _write_text(file.write, chain(heading, lines)) - len(heading)


def check_format(path: Path, *, resume: bool = False) -> None:
    """Refuse a file name that no format goes by, or where no file can be.

    Args:
        path: What is to be written.
        resume: It is to be continued after an interrupt.

    Raises:
        ConfigError: says which there are, or what is in the way.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(
            f"{path}: cannot tell the table's format: expected a name that ends in "
            f"{', '.join(FORMATS)}."
        )
    if resume and path.suffix not in RESUMABLE:
        raise ConfigError(
            f"{path}: --resume cannot continue a Parquet file, unreadable until it is whole. "
            f"Use a name that ends in {' or '.join(RESUMABLE)}."
        )
    check_place(path)


def read_begun(path: Path, table: Table) -> bool:
    """True if an interrupted table can be continued; cuts off its unfinished last line.

    Raises:
        ConfigError: It is whole already, or was begun with another model or other options.
    """
    partial, about = _partial(path), _about(path)
    if not partial.is_file() or not about.is_file():
        if path.exists():
            raise ConfigError(f"{path}: is whole already; there is nothing to resume.")
        return False
    if json.loads(about.read_text(encoding="utf-8")) != _identity(table):
        raise ConfigError(
            f"{partial}: was begun with another model or other options. Give the same ones, or "
            "leave --resume out to begin anew."
        )
    with partial.open("r+b") as file:
        file.truncate(_end_of_lines(file))
        file.seek(0)
        return path.suffix == ".jsonl" or len(list(islice(file, 2))) == 2


def skip_written(
    entries: Iterator[Record | Reject], path: Path
) -> tuple[int, Iterator[Record | Reject]]:
    """Number of rows written already, and the entries that have none yet.

    Raises:
        ConfigError: The rows are of other records.
    """
    number = 0
    for number, name in enumerate(_written_ids(path), 1):
        entry = next(entries, None)
        if entry is None or entry.id != name:
            raise ConfigError(
                f"{_partial(path)}: row {number} is that of {name!r}, but the input has "
                f"{'no more records' if entry is None else repr(entry.id)} there. Give the same "
                "input, or leave --resume out to begin anew."
            )
    return number, entries


def _written_ids(path: Path) -> Iterator[str]:
    with _partial(path).open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines):
            if path.suffix == ".jsonl":
                yield json.loads(line)["id"]
            elif number >= 2:
                yield line.split("\t", 1)[0]


def _end_of_lines(file: Any) -> int:
    """Where the last whole line ends; lines may be long, so it is looked for from behind."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - (1 << 16))
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return int(begin + found + 1)
        end = begin
    return 0


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _about(path: Path) -> Path:
    return path.with_name(path.name + ".partial.json")


def _identity(table: Table) -> dict[str, Any]:
    return {"description": table.description, "columns": table.columns}


@contextmanager
def _whole_file(
    path: Path, table: Table | None = None, resume: bool | None = None
) -> Iterator[Path]:
    """Where to write what takes its place at the end."""
    partial, about = _partial(path), _about(path)
    if table is not None and resume is not None:
        about.write_text(json.dumps(_identity(table)), encoding="utf-8")
    kept: tuple[type[BaseException], ...] = ()
    if resume is not None:
        # An error says that what was asked for cannot be had: only --resume had rows before it.
        kept = (BaseException,) if resume else (KeyboardInterrupt,)
    try:
        yield partial
        replace_file(partial, path)
    except BaseException as error:
        if not isinstance(error, kept):
            partial.unlink(missing_ok=True)
            about.unlink(missing_ok=True)
        raise
    about.unlink(missing_ok=True)


def _write_text(write: Callable[[str], Any], lines: Iterable[str]) -> int:
    number = 0
    for line in lines:
        write(line)
        number += 1
    return number


def _tsv_head(table: Table) -> Iterator[str]:
    yield f"# {table.description}\n"
    yield _tsv(table.columns)


def _tsv(cells: Row) -> str:
    return "\t".join(map(_text, cells)) + "\n"


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        # More digits for what a float32 cannot hold: predictions of a wide codec.
        return f"{cell:.7g}" if np.float32(cell) == cell else f"{cell:.12g}"
    return for_table(str(cell))


def _jsonl(names: Sequence[str], cells: Row) -> str:
    return json.dumps(dict(zip(names, cells, strict=True)), ensure_ascii=False) + "\n"


def _write_parquet(path: Path, rows: Iterable[Row], table: Table) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {NUMBER: pa.float32(), WIDE: pa.float64(), INTEGER: pa.int64()}
    schema = pa.schema(
        [(name, types.get(kind, pa.string())) for name, kind in table.kinds.items()],
        metadata={"description": table.description},
    )
    number, group = 0, []
    with pq.ParquetWriter(path, schema) as writer:
        for cells in rows:
            group.append(dict(zip(schema.names, cells, strict=True)))
            number += 1
            if len(group) == ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema))
                group = []
        writer.write_table(pa.Table.from_pylist(group, schema))
    return number
