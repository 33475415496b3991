"""Convolutions and linear layers, in the form that a CPU computes fastest.

Same values as torch's own up to rounding; figures in docs/performance.md.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE = 256
"""Rows of states that the gradient of a weight is summed over at once."""

HAS_ONEDNN = torch.backends.mkldnn.is_available()


def convolve(x: Tensor, weight: Tensor, bias: Tensor, dilation: int, padding: int) -> Tensor:
    """``(B, L, C)`` convolved to ``(B, L, D)``, with so many zeros at both ends.

    As a two-dimensional convolution of height one on channels-last memory, which the CPU and GPU
    libraries have their fastest kernels for; no transposed copy is made.
    """
    out = F.conv2d(_image(x), weight, padding=(0, padding), dilation=(1, dilation))
    # Added here because the library's own gradient of a bias takes as long as that of the
    # input: 4.1 of 11.8 ms at (32, 160, 96), k = 7, one thread.
    return _rows(out) + bias.to(out.dtype)


def convolve_row(row: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """A ``(1, n + reach, C)`` row convolved without padding, ``(1, n, D)``.

    Args:
        row: Contiguous states.
        weight: ``(D, C, 1, k)``, contiguous as channels-last; it reaches ``dilation * (k - 1)``.
        bias: ``(D,)``.
        dilation: Between the taps.
    """
    if not _runs_eagerly_on_cpu(row):
        return convolve(row, weight, bias, dilation, 0)
    out: Tensor = _RowConvolution.apply(row, weight, bias, dilation)  # type: ignore[no-untyped-call]
    return out


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.linear``, on a CPU in float32 by oneDNN.

    torch leaves it to MKL, which on processors that are not Intel's computes half as fast.
    """
    if not (HAS_ONEDNN and x.dtype == torch.float32 and _runs_eagerly_on_cpu(x)):
        return F.linear(x, weight, bias)
    rows: Tensor = _Linear.apply(x.flatten(0, -2), weight, bias)  # type: ignore[no-untyped-call]
    return rows.view(*x.shape[:-1], len(weight))


def _runs_eagerly_on_cpu(x: Tensor) -> bool:
    """Not traced, and in the dtype it comes in."""
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


class _RowConvolution(torch.autograd.Function):
    """A convolution of one long row.

    oneDNN takes the gradient of the kernel in one sweep over a row that has long left the cache,
    and twice as long as over the same row in pieces, as it would have it in a batch.
    """

    @staticmethod
    def forward(row: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
        return _rows(F.conv2d(_image(row), weight, bias, dilation=(1, dilation)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        row, weight, _, ctx.dilation = inputs
        ctx.save_for_backward(row, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        row, weight = ctx.saved_tensors
        wants_row, wants_weight, wants_bias, _ = ctx.needs_input_grad
        grad = grad.contiguous()
        grad_row = grad_weight = None
        if wants_row:
            grad_row = _rows(_gradients(grad, row, weight, ctx.dilation, 0))
        if wants_weight:
            pieces, grad_pieces = _in_pieces(row, grad)
            grad_weight = _gradients(grad_pieces, pieces, weight, ctx.dilation, 1)
        return grad_row, grad_weight, grad.sum((0, 1)) if wants_bias else None, None


class _Linear(torch.autograd.Function):
    """``x @ weight.T + bias`` over rows."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _product(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        if torch.is_grad_enabled():  # to be differentiated again
            return grad @ weight, grad.T @ x, grad.sum(0)
        return (
            _product(grad, weight.T.contiguous()) if wants_x else None,
            _weight_gradient(grad.contiguous(), x.contiguous()) if wants_weight else None,
            grad.sum(0) if wants_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """``grad.T @ x``: that of a 1 x 1 convolution, piece by piece, and of the rows left over."""
    whole = len(x) - len(x) % PIECE
    total = grad[whole:].T @ x[whole:]
    if not whole:
        return total
    kernel = x.new_empty(grad.shape[1], x.shape[1], 1, 1)  # only its shape is read
    grads, rows = (part[:whole].view(-1, PIECE, part.shape[1]) for part in (grad, x))
    return total + _gradients(grads, rows, kernel, 1, 1)[:, :, 0, 0]


def _gradients(grad: Tensor, rows: Tensor, weight: Tensor, dilation: int, which: int) -> Tensor:
    """The gradient of the rows (0) or of the weight (1)."""
    wanted = [which == 0, which == 1, False]
    found = torch.ops.aten.convolution_backward(
        _image(grad),
        _image(rows),
        weight,
        None,
        [1, 1],
        [0, 0],
        [1, dilation],
        False,
        [0, 0],
        1,
        wanted,
    )
    gradient: Tensor = found[which]
    return gradient


def _in_pieces(row: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Overlapping pieces of the row, and the gradients of what each of them gave."""
    n, C = grad.shape[1], row.shape[2]
    if n % PIECE:
        return row, grad
    reach = row.shape[1] - n
    pieces = row.as_strided((n // PIECE, PIECE + reach, C), (PIECE * C, C, 1))
    return pieces.contiguous(), grad.view(n // PIECE, PIECE, grad.shape[2])


def _image(rows: Tensor) -> Tensor:
    """``(B, L, C)`` as ``(B, C, 1, L)``, channels-last in memory."""
    return rows.transpose(1, 2).unsqueeze(2)


def _rows(image: Tensor) -> Tensor:
    """``(B, C, 1, L)`` as ``(B, L, C)``, contiguous."""
    return image.squeeze(2).transpose(1, 2).contiguous()
