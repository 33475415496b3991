"""Tokenized records in an Arrow file, memory-mapped: its reader's memory does not grow with it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.files import STDIN, whole_file
from seqtrain.data.ragged import Texts
from seqtrain.data.tokenized import Dropped, Origins, Tokenized
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.errors import DataError

STORE_FORMAT = "seqtrain-store-2"

_MAGIC = b"ARROW1"
_FIX = "Make it with `seqtrain data tokenize FASTA -o STORE`."


def is_store(path: str | Path) -> bool:
    """True if a file is an Arrow file, told from its first bytes."""
    if str(path) == STDIN or not Path(path).is_file():
        return False
    with Path(path).open("rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC


def write_store(path: str | Path, data: Tokenized, tokenizer: Tokenizer) -> None:
    """Write records as an Arrow IPC file: columns ``id``, ``description``, ``tokens``, ``dropped``.

    It is one record batch, so that every column maps back as one array. The file is there when all
    of it is written, or not at all.

    Raises:
        OSError: It cannot be written.
    """
    import pyarrow as pa

    assert isinstance(data.sequences.ids, Texts), "tokenized records hold nothing as an object"
    columns = {
        "id": _strings(data.sequences.ids),
        "description": _strings(data.descriptions),
        "tokens": _lists(data.sequences.tokens, data.sequences.offsets),
        "dropped": _lists(*data.dropped),
    }
    metadata = {
        "format": STORE_FORMAT,
        "tokenizer": json.dumps(tokenizer.to_dict()),
        "letters": json.dumps(data.letters),
    }
    batch = pa.record_batch(columns)
    metadata["sha256"] = _digest(batch, metadata)
    batch = batch.replace_schema_metadata(metadata)
    with (
        whole_file(Path(path)) as partial,
        pa.OSFile(str(partial), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)


def _strings(texts: Texts) -> Any:
    import pyarrow as pa

    buffers = map(pa.py_buffer, (texts.offsets, texts.data))
    return pa.LargeStringArray.from_buffers(len(texts), *buffers)


def _lists(values: np.ndarray, offsets: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))


def _digest(batch: Any, metadata: dict[str, str]) -> str:
    """Hexadecimal SHA-256 of the schema, all columns, and what else a store says of itself."""
    said = {key: value for key, value in metadata.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    digest.update(f"{batch.schema.remove_metadata()}{len(batch)}".encode())
    for column in batch.columns:
        for buffer in column.buffers():
            if buffer is not None:
                digest.update(f"{buffer.size}".encode())
                digest.update(buffer)
    return digest.hexdigest()


def open_store(path: str | Path) -> tuple[Tokenized, Tokenizer]:
    """The records of a store, memory-mapped, and what read their letters.

    Raises:
        DataError: The file is missing, damaged, or no store of this format.
    """
    batch, metadata = _read(path)
    tokens, dropped = batch["tokens"], batch["dropped"]
    sequences = SequenceDataset(
        _texts(batch["id"]), tokens.values.to_numpy(), tokens.offsets.to_numpy()
    )
    nowhere = np.zeros(len(sequences), np.int64)
    data = Tokenized(
        sequences,
        _texts(batch["description"]),
        Origins((str(path),), nowhere, nowhere, np.arange(len(sequences))),
        dropped=Dropped(dropped.values.to_numpy(), dropped.offsets.to_numpy()),
        letters=json.loads(metadata["letters"]),
        whole=sequences.lengths,
    )
    return data, Tokenizer.from_dict(json.loads(metadata["tokenizer"]))


def _read(path: str | Path) -> tuple[Any, dict[str, str]]:
    """All that is in the file, as it was written."""
    import pyarrow as pa

    try:
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        batch.validate(full=True)  # or what is read next may lie outside the file
        found = batch.schema.metadata or {}
        metadata = {key.decode(): value.decode() for key, value in found.items()}
        digest = _digest(batch, metadata)
    # Others than Arrow's own where damage hits what it trusts.
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a tokenized store: {error}. {_FIX}") from error
    if metadata.get("format") != STORE_FORMAT:
        raise DataError(f"{path}: an Arrow file, but not of format {STORE_FORMAT}. {_FIX}")
    if metadata.get("sha256") != digest:
        raise DataError(f"{path}: is damaged: its content is not that of its checksum. {_FIX}")
    return batch, metadata


def _texts(column: Any) -> Texts:
    _, offsets, data = column.buffers()
    return Texts(np.frombuffer(data, np.uint8), np.frombuffer(offsets, np.int64))
