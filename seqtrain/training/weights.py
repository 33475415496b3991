"""Compares a file of weights with the settings before a model of that size is built.

A file of a few bytes can ask for a model that no memory holds, or whose building never ends. The
header of a safetensors file says how large its tensors are, and its size proves that they are
there.
"""

import json
import math
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from seqtrain.build import build_model
from seqtrain.config import RunConfig
from seqtrain.data.labels import LabelCodec
from seqtrain.data.schema import integer, list_of, mapping, record, text
from seqtrain.data.tokenizer import Tokenizer

_MOST_HEADER_BYTES = 32 << 20
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}
_BYTES["BOOL"] = 1
_tensor = mapping(
    record(
        {
            "dtype": text,
            "shape": list_of(integer(0, 2**40), most=8),
            "data_offsets": list_of(integer(0, 2**50), 2, 2),
        }
    )
)

Shapes = dict[str, tuple[int, ...]]


def check_weights(
    file: Path | zipfile.Path, config: RunConfig, tokenizer: Tokenizer, codec: LabelCodec
) -> None:
    """Refuse weights that are not those of a model with these settings; allocates nothing.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, or says which tensor differs.
    """
    name = file.name
    found = _read_shapes(file)
    embedding = found.get("encoder.embedding.weight", ())
    width = embedding[-1] if embedding else None
    if width != config.encoder.embed_dim:
        raise ValueError(
            f"{name}: weights are of another model than the settings describe: "
            f"encoder.embed_dim={config.encoder.embed_dim}, and the weights have {width} channels"
        )
    layers = config.encoder.num_layers
    if layers is None or layers > len(found):
        raise ValueError(
            f"{name}: weights are of another model than the settings describe: "
            f"encoder.num_layers={layers}, and there are {len(found)} tensors"
        )
    with torch.device("meta"):
        model = build_model(config, tokenizer, codec)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    for key in sorted(expected.keys() | found.keys()):
        if expected.get(key) != found.get(key):
            raise ValueError(
                f"{name}: weights are of another model than the settings describe: {key}: expected "
                f"shape {expected.get(key)}, found {found.get(key)}"
            )


def _read_shapes(file: Path | zipfile.Path) -> Shapes:
    """The shape of each tensor, from a header that agrees with the size of the file."""
    size = _size(file)
    with file.open("rb") as opened:
        stream = cast(BinaryIO, opened)
        length = int.from_bytes(stream.read(8), "little")
        if length > min(size - 8, _MOST_HEADER_BYTES):
            raise ValueError(f"{file.name}: the header is damaged, or the file was cut short")
        header: Any = _header(stream.read(length), file.name)
    shapes, used = {}, 0
    for name, tensor in header.items():
        if tensor["dtype"] not in _BYTES:
            raise ValueError(f"{file.name}: {name}: unknown type {tensor['dtype']!r}")
        begin, end = tensor["data_offsets"]
        if end - begin != math.prod(tensor["shape"]) * _BYTES[tensor["dtype"]]:
            raise ValueError(f"{file.name}: {name}: its shape is not of the size of its data")
        used += end - begin
        shapes[name] = tuple(tensor["shape"])
    if used + length + 8 != size:
        raise ValueError(
            f"{file.name}: expected {used + length + 8:,} bytes, found {size:,}; it was cut short"
        )
    return shapes


def _size(file: Path | zipfile.Path) -> int:
    if isinstance(file, Path):
        return file.stat().st_size
    return file.root.getinfo(file.at).file_size


def _header(raw: bytes, name: str) -> Any:
    try:
        header = json.loads(raw.decode("utf-8"))
        if isinstance(header, dict):
            header.pop("__metadata__", None)
        _tensor(header, "header")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: the header is damaged: {error}") from None
    return header
