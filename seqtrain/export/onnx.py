"""The model as an ONNX graph, for runtimes that know nothing of torch. The one door to onnx."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqtrain.data.files import whole_file
from seqtrain.errors import ExportError
from seqtrain.export.program import INPUTS, Runner, output_name, program_metadata, trace
from seqtrain.training.checkpoint import LoadedRun


def write_onnx(loaded: LoadedRun, path: Path) -> None:
    """Write the model as one file: any batch, any length, batch norms folded.

    Inputs are ``tokens``, int64 ``(batch, length)``, and ``lengths``, int64 ``(batch,)``; the
    output is ``probabilities`` or ``values``. Metadata say what letters and classes mean.

    Raises:
        ExportError: The packages for it are not installed, or the file cannot be written.
    """
    _require("onnx", "onnxscript")
    import onnx

    with _quiet():
        exported = torch.onnx.export(
            trace(loaded.model),
            dynamo=True,
            verbose=False,
            input_names=list(INPUTS),
            output_names=[output_name(loaded.codec)],
        )
    assert exported is not None
    proto = exported.model_proto
    _name_dimensions(proto.graph)
    for node in proto.graph.node:
        del node.metadata_props[:]  # the tracer's notes, of use to nobody who runs the graph
    onnx.helper.set_model_props(proto, program_metadata(loaded))
    try:
        with whole_file(path) as partial:
            onnx.save(proto, partial)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror}.") from error


def read_onnx(path: Path) -> Runner:
    """What computes the results of an ONNX file, by onnxruntime on one CPU.

    Raises:
        ExportError: onnxruntime is not installed.
    """
    _require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # waiting threads would take time from whatever else runs
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        results: np.ndarray = session.run(None, {"tokens": tokens, "lengths": lengths})[0]
        return results

    return run


def _require(*packages: str) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"--format onnx needs {', '.join(missing)}. Install it with: "
            "pip install 'seqtrain[onnx]'"
        )


def _name_dimensions(graph: Any) -> None:
    """``batch`` and ``length`` for the names that the tracer gave to the free dimensions."""
    traced = [dim.dim_param for dim in graph.input[0].type.tensor_type.shape.dim]
    names = dict(zip(traced, ("batch", "length"), strict=True))
    pattern = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names))
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = pattern.sub(lambda found: names[found[0]], dim.dim_param)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's words about torchvision and its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
