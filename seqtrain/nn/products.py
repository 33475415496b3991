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


def convolve_row(row: Tensor, weight: Tensor, bias: Tensor, dilation: int, padding: int) -> Tensor:
    """The same for a single long row, ``(1, n, C)``: on a CPU its gradient in pieces.

    Args:
        row: Contiguous states.
        weight: ``(D, C, 1, k)``, contiguous as channels-last; it reaches ``dilation * (k - 1)``.
        bias: ``(D,)``.
        dilation: Between the taps.
        padding: Half of what it reaches.
    """
    if not _runs_eagerly_on_cpu(row):
        return convolve(row, weight, bias, dilation, padding)
    out: Tensor = _RowConvolution.apply(  # type: ignore[no-untyped-call]
        row, weight, bias, dilation, padding
    )
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
    def forward(row: Tensor, weight: Tensor, bias: Tensor, dilation: int, padding: int) -> Tensor:
        out = F.conv2d(_image(row), weight, bias, padding=(0, padding), dilation=(1, dilation))
        return _rows(out)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        row, weight, _, ctx.dilation, ctx.padding = inputs
        ctx.save_for_backward(row, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        row, weight = ctx.saved_tensors
        wants_row, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        grad = grad.contiguous()
        grad_row = grad_weight = None
        if wants_row:
            grad_row = _rows(_gradients(grad, row, weight, 0, ctx.dilation, ctx.padding))
        if wants_weight:
            pieces, grad_pieces = _in_pieces(row, grad, ctx.padding)
            grad_weight = _gradients(grad_pieces, pieces, weight, 1, ctx.dilation)
        return grad_row, grad_weight, grad.sum((0, 1)) if wants_bias else None, None, None


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
    return total + _gradients(grads, rows, kernel, 1)[:, :, 0, 0]


def _gradients(
    grad: Tensor, rows: Tensor, weight: Tensor, which: int, dilation: int = 1, padding: int = 0
) -> Tensor:
    """The gradient of the rows (0) or of the weight (1)."""
    wanted = [which == 0, which == 1, False]
    found = torch.ops.aten.convolution_backward(
        _image(grad),
        _image(rows),
        weight,
        None,
        [1, 1],
        [0, padding],
        [1, dilation],
        False,
        [0, 0],
        1,
        wanted,
    )
    gradient: Tensor = found[which]
    return gradient


def _in_pieces(row: Tensor, grad: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """The row in pieces, each between the ends of its neighbours, and the gradients of each."""
    n, C = row.shape[1:]
    if n % PIECE or reach > PIECE or torch.is_grad_enabled():  # to be differentiated again
        return F.pad(row, (0, 0, reach, reach)), grad
    inner = row.view(-1, PIECE, C)
    pieces = row.new_empty(len(inner), reach + PIECE + reach, C)
    left, middle, right = pieces.split([reach, PIECE, reach], dim=1)
    left[0], right[-1] = 0, 0
    left[1:], right[:-1] = inner[:-1, PIECE - reach :], inner[1:, :reach]
    middle.copy_(inner)
    return pieces, grad.view(-1, PIECE, grad.shape[2])


def _image(rows: Tensor) -> Tensor:
    """``(B, L, C)`` as ``(B, C, 1, L)``, channels-last in memory."""
    return rows.transpose(1, 2).unsqueeze(2)


def _rows(image: Tensor) -> Tensor:
    """``(B, C, 1, L)`` as ``(B, L, C)``, contiguous."""
    return image.squeeze(2).transpose(1, 2).contiguous()
