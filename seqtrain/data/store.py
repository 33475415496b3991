"""Tokenized records in an Arrow file, memory-mapped: its reader's memory does not grow with it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from seqtrain.data.dataset import SequenceDataset
from seqtrain.errors import DataError

STORE_FORMAT = "seqtrain-store-1"


class ArrowStrings(Sequence[str]):
    """A read-only list of strings that stays in its Arrow buffer until an item is asked for."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> Sequence[str]: ...
    def __getitem__(self, key: int | slice) -> str | Sequence[str]:
        if isinstance(key, slice):
            return ArrowStrings(self._array[key])
        return str(self._array[key].as_py())


def write_store(path: str | Path, dataset: SequenceDataset, metadata: Mapping[str, str]) -> None:
    """Write ``dataset`` as one Arrow IPC file: columns ``id``, ``tokens`` and perhaps ``target``.

    It is one record batch, so that every column maps back as one array.
    """
    import pyarrow as pa

    offsets = pa.array(dataset.offsets, pa.int64())
    columns = {
        "id": pa.array(dataset.ids, pa.large_string()),
        "tokens": pa.LargeListArray.from_arrays(offsets, pa.array(dataset.tokens)),
    }
    if dataset.targets is not None:
        values = pa.array(dataset.targets.reshape(-1))
        if dataset.per_residue:
            values = pa.LargeListArray.from_arrays(offsets, values)
        elif dataset.targets.ndim == 2:
            values = pa.FixedSizeListArray.from_arrays(values, dataset.targets.shape[1])
        columns["target"] = values
    batch = pa.record_batch(columns, metadata={**metadata, "format": STORE_FORMAT})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def open_store(path: str | Path) -> tuple[SequenceDataset, dict[str, str]]:
    """The dataset of a store, memory-mapped, and the metadata it was written with.

    Raises:
        DataError: the file is missing, or is no store.
    """
    import pyarrow as pa

    fix = "Make it with `seqtrain data tokenize FASTA -o STORE`."
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read as a tokenized store: {error}. {fix}") from error
    raw = batch.schema.metadata or {}
    metadata = {key.decode(): value.decode() for key, value in raw.items()}
    if metadata.pop("format", None) != STORE_FORMAT:
        raise DataError(f"{path}: an Arrow file, but not of format {STORE_FORMAT}. {fix}")
    tokens, targets, per_residue = batch["tokens"], None, False
    if "target" in batch.schema.names:
        target = batch["target"]
        per_residue = pa.types.is_large_list(target.type)
        if pa.types.is_fixed_size_list(target.type):
            targets = target.values.to_numpy().reshape(len(batch), target.type.list_size)
        else:
            targets = (target.values if per_residue else target).to_numpy()
    return (
        SequenceDataset(
            ids=ArrowStrings(batch["id"]),
            tokens=tokens.values.to_numpy(),
            offsets=tokens.offsets.to_numpy(),
            targets=targets,
            per_residue=per_residue,
        ),
        metadata,
    )
