"""Vectors that an encoder gives to sequences, for other programs to work with."""

import shutil
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqtrain.data.batching import collate, plan_batches
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.fasta import Record, Reject
from seqtrain.data.files import check_place, shown, whole_file
from seqtrain.data.lengths import LengthRule
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.errors import ConfigError, DataError
from seqtrain.evaluation.applicability import TrainingRange
from seqtrain.evaluation.chunks import read_chunks
from seqtrain.evaluation.predict import NOT_FINITE
from seqtrain.evaluation.windows import Range, Windows, read_in_windows
from seqtrain.masking import masked_max, masked_mean, zero_padding
from seqtrain.nn.encoders import Encoder
from seqtrain.nn.layout import Layout, padded_layout
from seqtrain.nn.model import SequenceModel

POOLINGS = {"mean": masked_mean, "max": masked_max}
ROWS_PER_GROUP = 512
_PARTS_AT_ONCE = 1024
"""Windows whose sums are held until they are added up."""
CHUNK_NUMBERS = 16_000_000
"""Numbers of residues' vectors that are held at a time: 64 MB."""
DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
}


@dataclass(frozen=True, eq=False)
class Embedding:
    """What an encoder says of one input record."""

    id: str
    length: int
    """Residues read; 0 where none could be."""
    status: str
    """``ok``, or why there is no vector."""
    values: np.ndarray | None
    """``(C,)``, or per residue ``(length, C)``; None unless ok."""
    warnings: tuple[str, ...] = ()
    """``truncated`` or ``left out`` where the record is too long for the model."""


def hidden_states(encoder: Encoder, tokens: Tensor, layout: Layout, layer: int = -1) -> Tensor:
    """States ``(B, L, C)`` after a layer, exact zeros at padding.

    Args:
        encoder: In evaluation mode.
        tokens: Int64 ``(B, L)``.
        layout: Where the residues are.
        layer: 0 is the embedding, ``i`` the ``i``-th block; -1 is what the head sees.

    Raises:
        ConfigError: There is no such layer.
    """
    if layer == -1:
        states: Tensor = encoder(tokens, layout)
        return states
    if not 0 <= layer <= len(encoder.blocks):
        raise ConfigError(
            f"--layer {layer}: expected -1 (the last), or 0 (the embedding) to "
            f"{len(encoder.blocks)} (the last block)."
        )
    x = zero_padding(encoder.embedding(tokens), layout.mask)
    for block in encoder.blocks[:layer]:
        x = block(x, layout)
    return zero_padding(x, layout.mask)


def embed_records(
    model: SequenceModel,
    tokenizer: Tokenizer,
    entries: Iterator[Record | Reject],
    *,
    max_tokens: int,
    per_residue: bool = False,
    pooling: str = "mean",
    layer: int = -1,
    dtype: str = "float32",
    on_error: str = "fail",
    windows: Windows | None = None,
    lengths: LengthRule | None = None,
    trained_on: TrainingRange | None = None,
) -> Iterator[Embedding]:
    """One embedding per entry, in order, in constant memory.

    Args:
        model: On the device to compute on.
        tokenizer: Of the training.
        entries: From ``scan_fasta``.
        max_tokens: Padded positions per batch.
        per_residue: A vector for each residue read, not one for each record.
        pooling: ``mean`` or ``max`` over the real residues.
        layer: As in :func:`hidden_states`.
        dtype: ``float32`` or ``float16``, of what comes out; computed in float32.
        on_error: As in ``Predictor``.
        windows: How long records are cut; vectors of residues are stitched as in ``Windows``, and
            pooled when they are. None reads each record in one piece.
        lengths: How over-long records are read; none: as they are.
        trained_on: The range of the training, for warnings of records outside it.

    Raises:
        ConfigError: There is no such layer, pooling or dtype.
        FastaError: A record cannot be used and ``on_error`` is ``fail``.
        DataError: A vector is not finite, likewise.
    """
    for name, value, choices in (("pooling", pooling, POOLINGS), ("dtype", dtype, DTYPES)):
        if value not in choices:
            raise ConfigError(f"--{name}: expected one of {', '.join(choices)}, found {value!r}.")
    width: int = model.encoder.embed_dim  # type: ignore[assignment]
    by_residue = per_residue or windows is not None
    most = max(1, CHUNK_NUMBERS // width) if by_residue else None
    for chunk in read_chunks(entries, tokenizer, on_error, lengths or LengthRule(), most):
        if windows is None:
            vectors = _vectors(model, chunk.tokens, max_tokens, per_residue, pooling, layer)
        else:
            vectors = _windowed(
                model, chunk.tokens, max_tokens, windows, layer, None if per_residue else pooling
            )
        found = iter(vectors)
        unlike = iter(trained_on.warnings(chunk.tokens, tokenizer)) if trained_on else repeat(())
        for entry, warned in zip(chunk.read, chunk.warnings, strict=True):
            if isinstance(entry, Reject):
                yield Embedding(entry.id, 0, entry.reason, None, warned)
                continue
            values, length = next(found)
            warned = (*warned, *next(unlike))
            with np.errstate(over="ignore"):
                cast = values.astype(DTYPES[dtype])
            if np.isfinite(cast).all():
                yield Embedding(entry.id, length, "ok", cast, warned)
                continue
            wrong = NOT_FINITE if dtype == "float32" else f"{NOT_FINITE}, or those of {dtype}"
            if on_error == "fail":
                raise DataError(f"{shown(entry.source)}, record {entry.id!r}: {wrong}")
            yield Embedding(entry.id, length, wrong, None)


def _windowed(
    model: SequenceModel,
    tokens: list[np.ndarray],
    max_tokens: int,
    windows: Windows,
    layer: int,
    pooling: str | None,
) -> list[tuple[np.ndarray, int]]:
    """Vectors of each record, read in windows, and its length; of its residues without pooling."""

    def read(pieces: list[np.ndarray]) -> list[np.ndarray]:
        said = _vectors(model, pieces, max_tokens, True, "mean", layer)
        return [values for values, _ in said]

    def take(number: int, part: Range, values: np.ndarray) -> None:
        own = values[part.within]
        if pooling is not None:
            own = combine(own.astype(np.float64))
        parts[number].append(own)
        if pooling is not None and len(parts[number]) == _PARTS_AT_ONCE:
            parts[number] = [combine(parts[number])]

    def combine(rows: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        return np.asarray(np.max(rows, axis=0) if pooling == "max" else np.sum(rows, axis=0))

    parts: list[list[np.ndarray]] = [[] for _ in tokens]
    read_in_windows(tokens, windows, read, take)
    if pooling is None:
        joined = [np.concatenate(own) for own in parts]
    else:
        joined = [combine(own) for own in parts]
    lengths = [len(record) for record in tokens]
    if pooling == "mean":
        joined = [each / length for each, length in zip(joined, lengths, strict=True)]
    return list(zip(joined, lengths, strict=True))


@torch.inference_mode()
def _vectors(
    model: SequenceModel,
    tokens: list[np.ndarray],
    max_tokens: int,
    per_residue: bool,
    pooling: str,
    layer: int,
) -> list[tuple[np.ndarray, int]]:
    """Vectors of each record, and its length."""
    if not tokens:
        return []
    device = next(model.parameters()).device
    encoder = model.encoder.eval()
    assert isinstance(encoder, Encoder)
    dataset = SequenceDataset.from_lists([str(i) for i in range(len(tokens))], tokens)
    found: dict[int, tuple[np.ndarray, int]] = {}
    for index in plan_batches(dataset.lengths, "bucketed", max_tokens=max_tokens, shuffle=False):
        batch = collate(dataset, index).to(device)
        layout = padded_layout(batch.lengths, batch.tokens.shape[1], device)
        assert layout.mask is not None
        states = hidden_states(encoder, batch.tokens, layout, layer).float()
        pooled = states if per_residue else POOLINGS[pooling](states, layout.mask)
        rows = zip(batch.index.tolist(), pooled.cpu().numpy(), batch.lengths.tolist(), strict=True)
        for record, values, length in rows:
            found[record] = (values[:length].copy() if per_residue else values, length)
    return [found[i] for i in range(len(tokens))]


def check_embedding_format(path: Path) -> None:
    """Refuse a file name that no format goes by, or where no file can be.

    Raises:
        ConfigError: says which there are.
    """
    if path.suffix not in (".npz", ".parquet"):
        raise ConfigError(f"{path}: expected a name that ends in .npz or .parquet.")
    check_place(path)


def write_embeddings(
    path: Path, embeddings: Iterable[Embedding], *, per_residue: bool, dtype: str
) -> int:
    """Write embeddings while they are made; returns the number of records.

    ``.npz``: ``ids``, ``lengths``, ``status`` and ``embeddings``, one row per record and NaN where
    there is no vector; per residue all rows end to end, record ``i`` being
    ``embeddings[offsets[i]:offsets[i + 1]]``. ``.parquet``: the columns ``id``, ``length``,
    ``status`` and ``embedding``, a list per record, or a list of lists. An interrupted write
    leaves no file behind.

    Raises:
        ConfigError: Another ending.
    """
    check_embedding_format(path)
    write = _write_parquet if path.suffix == ".parquet" else _write_npz
    with whole_file(path) as partial:
        try:
            return write(partial, embeddings, per_residue, DTYPES[dtype])
        finally:
            _rows_file(partial).unlink(missing_ok=True)


def _rows_file(partial: Path) -> Path:
    return partial.with_name(partial.name + ".rows")


def _write_npz(
    path: Path, embeddings: Iterable[Embedding], per_residue: bool, dtype: np.dtype[Any]
) -> int:
    """Rows go to a file of their own first: an array's header needs to know how many there are."""
    ids, statuses, lengths, skipped = [], [], [], []
    dim, num_rows = 0, 0
    with _rows_file(path).open("w+b") as rows, zipfile.ZipFile(path, "w") as archive:
        for embedding in embeddings:
            ids.append(embedding.id)
            statuses.append(embedding.status)
            lengths.append(embedding.length)
            if embedding.values is not None:
                values = embedding.values.reshape(-1, embedding.values.shape[-1])
                dim = values.shape[1]
                rows.write(values.tobytes())
                num_rows += len(values)
            elif not per_residue:
                skipped.append(len(ids) - 1)
        arrays = {
            "ids": np.array(ids, dtype=np.str_),
            "status": np.array(statuses, dtype=np.str_),
            "lengths": np.array(lengths, dtype=np.int64),
        }
        if per_residue:
            arrays["offsets"] = np.concatenate([[0], np.cumsum(arrays["lengths"])])
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        shape = (num_rows + len(skipped), dim)
        with archive.open("embeddings.npy", "w", force_zip64=True) as member:
            header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)
            rows.seek(0)
            _copy_rows(rows, member, skipped, dim, dtype)
    return len(ids)


def _copy_rows(rows: Any, member: Any, skipped: list[int], dim: int, dtype: np.dtype[Any]) -> None:
    """All rows, with one of NaN at each place that was ``skipped``."""
    before = 0
    for number, place in enumerate(skipped):
        member.write(rows.read((place - number - before) * dim * dtype.itemsize))
        member.write(np.full(dim, np.nan, dtype).tobytes())
        before = place - number
    shutil.copyfileobj(rows, member)


def _write_parquet(
    path: Path, embeddings: Iterable[Embedding], per_residue: bool, dtype: np.dtype[Any]
) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    vector = pa.list_(pa.from_numpy_dtype(dtype))
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("length", pa.int64()),
            ("status", pa.string()),
            ("embedding", pa.list_(vector) if per_residue else vector),
        ]
    )
    number = 0
    columns: list[list[Any]] = [[], [], [], []]
    with pq.ParquetWriter(path, schema) as writer:
        for embedding in embeddings:
            values = embedding.values
            cell = values if values is None or not per_residue else list(values)
            row = (embedding.id, embedding.length, embedding.status, cell)
            for column, value in zip(columns, row, strict=True):
                column.append(value)
            number += 1
            if len(columns[0]) == ROWS_PER_GROUP:
                writer.write_table(_table(columns, schema))
                columns = [[], [], [], []]
        writer.write_table(_table(columns, schema))
    return number


def _table(columns: list[list[Any]], schema: Any) -> Any:
    import pyarrow as pa

    arrays = [pa.array(c, type=f.type) for c, f in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)
