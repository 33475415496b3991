"""Tokenized records in an Arrow file, memory-mapped: its reader's memory does not grow with it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.files import STDIN
from seqtrain.data.ragged import Texts
from seqtrain.data.tokenized import Dropped, Origins, Tokenized
from seqtrain.data.tokenizer import PAD, Tokenizer
from seqtrain.errors import DataError

STORE_FORMAT = "seqtrain-store-2"

_MAGIC = b"ARROW1"


def is_store(path: str | Path) -> bool:
    """Whether a file is an Arrow file, told from its first bytes."""
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

    columns = {
        "id": _strings(_as_texts(data.sequences.ids)),
        "description": _strings(data.descriptions),
        "tokens": _lists(data.sequences.tokens, data.sequences.offsets),
        "dropped": _lists(*data.dropped),
    }
    metadata = {
        "format": STORE_FORMAT,
        "tokenizer": json.dumps(tokenizer.to_dict()),
        "letters": json.dumps(data.letters),
    }
    batch = pa.record_batch(columns, metadata=metadata)
    partial = Path(f"{path}.partial")
    try:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _as_texts(ids: Sequence[str]) -> Texts:
    return ids if isinstance(ids, Texts) else Texts.of(ids)


def _strings(texts: Texts) -> Any:
    import pyarrow as pa

    buffers = map(pa.py_buffer, (texts.offsets, texts.data))
    return pa.LargeStringArray.from_buffers(len(texts), *buffers)


def _lists(values: np.ndarray, offsets: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))


def open_store(path: str | Path) -> tuple[Tokenized, Tokenizer]:
    """The records of a store, memory-mapped, and what read their letters.

    Raises:
        DataError: The file is missing, or is no store of this format.
    """
    import pyarrow as pa

    fix = "Make it with `seqtrain data tokenize FASTA -o STORE`."
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        batch.validate(full=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read as a tokenized store: {error}. {fix}") from error
    metadata = {
        key.decode(): value.decode() for key, value in (batch.schema.metadata or {}).items()
    }
    if metadata.get("format") != STORE_FORMAT:
        raise DataError(f"{path}: an Arrow file, but not of format {STORE_FORMAT}. {fix}")
    tokens, dropped = batch["tokens"], batch["dropped"]
    sequences = SequenceDataset(
        _texts(batch["id"]), tokens.values.to_numpy(), tokens.offsets.to_numpy()
    )
    nowhere = np.zeros(len(sequences), np.int64)
    tokenizer = Tokenizer.from_dict(json.loads(metadata["tokenizer"]))
    counts = sequences.token_counts()
    if len(counts) > tokenizer.vocab_size or (len(counts) and counts[PAD]):
        raise DataError(f"{path}: holds tokens that stand for no letter; it is damaged. {fix}")
    data = Tokenized(
        sequences,
        _texts(batch["description"]),
        Origins((str(path),), nowhere, nowhere, np.arange(len(sequences))),
        dropped=Dropped(dropped.values.to_numpy(), dropped.offsets.to_numpy()),
        letters=json.loads(metadata["letters"]),
        whole=sequences.lengths,
    )
    return data, tokenizer


def _texts(column: Any) -> Texts:
    _, offsets, data = column.buffers()
    return Texts(np.frombuffer(data, np.uint8), np.frombuffer(offsets, np.int64))
