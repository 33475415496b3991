"""The model as one traced program: batch norms folded, any batch and length, results read out."""

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from string import ascii_letters
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

import seqtrain
from seqtrain.data.alphabet import GAPS, STOP
from seqtrain.data.files import whole_file
from seqtrain.data.labels import LabelCodec, is_regression
from seqtrain.data.tokenizer import PAD, Tokenizer
from seqtrain.errors import ExportError
from seqtrain.masking import lengths_to_mask, zero_padding
from seqtrain.nn.blocks import ConvBlock
from seqtrain.nn.model import SequenceModel
from seqtrain.nn.norms import MaskedBatchNorm
from seqtrain.nn.plain_norms import NoNorm, PlainBatchNorm
from seqtrain.training.calibration import calibration_words
from seqtrain.training.checkpoint import LoadedRun

INPUTS = ("tokens", "lengths")

Runner = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""``(tokens, lengths)`` to results, all arrays."""


class FoldedNorm(nn.Module):
    """A batch norm in evaluation that no convolution takes in: a scale and a shift per channel."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: _BatchNorm):
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", norm.bias - norm.running_mean * scale)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(B, L, C)``, exact zeros at padding."""
        return zero_padding(x * self.scale + self.shift, mask)


@torch.no_grad()
def fold_norms(model: SequenceModel) -> SequenceModel:
    """A copy in evaluation mode that computes the same without its batch norms.

    Those behind a convolution go into its weights; padding is zeroed after as before.
    """
    folded = copy.deepcopy(model).cpu().eval()
    for module in folded.modules():
        if isinstance(module, ConvBlock) and _is_batch_norm(module.norm):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            module.norm = NoNorm()
    for parent in list(folded.modules()):
        for name, child in list(parent.named_children()):
            if _is_batch_norm(child):
                setattr(parent, name, FoldedNorm(child))
    return folded


def _is_batch_norm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    return isinstance(module, MaskedBatchNorm | PlainBatchNorm)


class Program(nn.Module):
    """``(tokens, lengths)`` to what a user reads: probabilities, or values in the target's unit."""

    def __init__(self, model: SequenceModel):
        super().__init__()
        self.model = fold_norms(model).requires_grad_(False)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """``(B, K)``, ``(B,)`` for a regression; by residue ``(B, L, K)`` or ``(B, L)``."""
        logits = self.model(tokens, lengths)
        results: Tensor = self.model.head.readout(logits)  # type: ignore[operator]
        if self.model.pooling is None:  # of residues: padding gets zeros
            values = results if results.ndim == 3 else results[..., None]
            cleared = zero_padding(values, lengths_to_mask(lengths, tokens.shape[1]))
            results = cleared.view_as(results)
        return results


def trace(model: SequenceModel) -> Any:
    """The ``torch.export`` program of a model, for any number and length of sequences."""
    tokens = torch.ones(3, 7, dtype=torch.int64)
    lengths = torch.tensor([7, 4, 2])
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    shapes = {"tokens": {0: batch, 1: length}, "lengths": {0: batch}}
    with torch.no_grad():
        program = torch.export.export(Program(model), (tokens, lengths), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        # Where in whose source tree an operation came from serves nobody else.
        node.meta.pop("stack_trace", None)
    return program


def write_program(loaded: LoadedRun, path: Path) -> None:
    """Write a ``.pt2`` program that torch runs without seqtrain.

    Raises:
        ExportError: The file cannot be written.
    """
    metadata = json.dumps(program_metadata(loaded))
    packed = io.BytesIO()  # torch aborts the process where its own writer meets a full disk
    torch.export.save(trace(loaded.model), packed, extra_files={"metadata.json": metadata})
    try:
        with whole_file(path) as partial:
            partial.write_bytes(packed.getbuffer())
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror}.") from error


def read_program(path: Path) -> Runner:
    """What computes the results of a ``.pt2`` program, on the CPU."""
    with path.open("rb") as file:
        module = torch.export.load(file).module()

    def run(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        results: np.ndarray = module(torch.from_numpy(tokens), torch.from_numpy(lengths)).numpy()
        return results

    return run


def output_name(codec: LabelCodec) -> str:
    """What a program's numbers are: ``values`` in the target's unit, or ``probabilities``."""
    return "values" if is_regression(codec.task) else "probabilities"


def program_metadata(loaded: LoadedRun) -> dict[str, str]:
    """What a user without seqtrain needs to make tokens and to name results; JSON in the values."""
    tokenizer = loaded.tokenizer
    letters, dropped = _letters(tokenizer)
    mask = {"mask": str(tokenizer.vocab_size)} if loaded.codec.task == "mlm" else {}
    return {
        "seqtrain": seqtrain.__version__,
        "task": loaded.codec.task,
        "alphabet": tokenizer.alphabet.name,
        "letters": json.dumps(letters),
        "dropped": dropped,
        "pad": str(PAD),
        **mask,
        "classes": json.dumps(loaded.codec.classes),
        "output": output_name(loaded.codec),
        "calibration": calibration_words([loaded.calibration]),
    }


def _letters(tokenizer: Tokenizer) -> tuple[dict[str, int], str]:
    """The token of every letter that is read, and the letters that are dropped."""
    symbols = ascii_letters + GAPS + STOP
    dropped = [symbol for symbol in symbols if not tokenizer.keep(symbol)[0]]
    read = [s for s in symbols if s not in dropped and tokenizer.problem(s) is None]
    return {symbol: int(tokenizer.encode(symbol)[0]) for symbol in read}, "".join(dropped)
