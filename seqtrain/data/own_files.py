"""Tells the files that this program writes from those of anybody else, by their content."""

import json
import zipfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from seqtrain.data.header_splits import split_name
from seqtrain.data.store import STORE_FORMAT

_TABLE_COLUMNS = ["id", "length", "status"]
"""Columns that every table of predictions or embeddings begins with."""

_LONGEST_LINE = 1 << 16
_ROWS_LOOKED_AT = 1000


def is_nobodys(_path: Path) -> bool:
    """Never: files of a kind that is not told apart are not replaced."""
    return False


def is_split_table(path: Path) -> bool:
    """True if it is what ``data split`` writes: columns id and split, and names of parts alone."""
    with path.open(encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in islice(file, _ROWS_LOOKED_AT)]
    return rows[:1] == [["id", "split"]] and all(
        len(row) == 2 and split_name(row[1]) == row[1] for row in rows[1:]
    )


def is_prediction_table(path: Path) -> bool:
    """True if it is a table of predictions, as TSV, JSON lines or Parquet."""
    with path.open("rb") as file:
        head = [file.readline(_LONGEST_LINE) for _ in range(2)]
    if head[0].startswith(b"PAR1"):
        return _parquet_columns(path) == _TABLE_COLUMNS
    if head[0].startswith(b"{"):
        return head[0].startswith(b'{"id":') and b'"length":' in head[0] and b'"status":' in head[0]
    columns = [line.decode("utf-8").rstrip("\n").split("\t")[:3] for line in head]
    return _TABLE_COLUMNS in columns


def is_embedding_file(path: Path) -> bool:
    """True if it holds embeddings, as NumPy archive or Parquet."""
    if not zipfile.is_zipfile(path):
        return _parquet_columns(path) == _TABLE_COLUMNS
    with zipfile.ZipFile(path) as archive:
        return {"ids.npy", "lengths.npy", "status.npy", "embeddings.npy"} <= set(archive.namelist())


def is_own_store(path: Path) -> bool:
    """True if it is a store of ``data tokenize``, of whatever version."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        found = pa.ipc.open_file(file).schema.metadata or {}
    return bool(found.get(b"format", b"").startswith(STORE_FORMAT.rpartition("-")[0].encode()))


def is_report(*keys: str) -> Callable[[Path], bool]:
    """True if a file is a JSON object with all these keys."""

    def is_own(path: Path) -> bool:
        found = json.loads(path.read_bytes())
        return isinstance(found, dict) and set(keys) <= found.keys()

    return is_own


def _parquet_columns(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    return list(pq.read_schema(path).names[:3])
