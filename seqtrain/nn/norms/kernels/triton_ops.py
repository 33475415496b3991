"""The Triton kernels as operators of torch, with shapes and derivatives.

``torch.compile`` and ``torch.export`` see the operators, not what is inside. Importing this needs
Triton. Shapes: x ``(B, L, C)`` of any strides, mask ``(B, L)``, all else per channel ``(C,)``.

Experimental, like the kernels.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqtrain.nn.norms.kernels import triton_kernels as kernels
from seqtrain.nn.norms.masks import select_real
from seqtrain.nn.norms.moments import wide_dtype
from seqtrain.nn.norms.standardize import Statistics, standardize

PROGRAMS = 528
"""Programs that share a pass: four for each multiprocessor of an H100. The same on every GPU,
because the order of summation, and with it the last bits, depends on it."""

TILE = 4096
"""Elements of a tile: 32 for each of 128 threads, four loads of 16 bytes in half precision."""

MERGED = {"S": 64, "K": 16}
"""Rows and channels of the table that are merged at once."""


class Plan(NamedTuple):
    """How a pass over ``(B, L, C)`` is cut into tiles and programs."""

    length: int
    """Positions of a sequence; of the batch, where its sequences follow each other in memory."""
    channels: int
    strides: tuple[int, ...]
    tiles: int
    tiles_per_sequence: int
    tile_length: int
    block: int
    """Channels of a block."""
    splits: int
    """Programs that share a block's tiles."""

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks of channels, and splits."""
        return -(-self.channels // self.block), self.splits

    @property
    def arguments(self) -> dict[str, int]:
        """What every kernel that makes such a pass is told."""
        return {
            "length": self.length,
            "channels": self.channels,
            "tiles": self.tiles,
            "tiles_per_sequence": self.tiles_per_sequence,
            "stride_b": self.strides[0],
            "stride_l": self.strides[1],
            "stride_c": self.strides[2],
            "T": self.tile_length,
            "K": self.block,
        }


def plan_pass(x: Tensor) -> Plan:
    """Tiles and programs for features ``(B, L, C)``."""
    sequences, length, channels = x.shape
    strides = x.stride()
    if strides[0] == length * strides[1]:
        sequences, length = 1, sequences * length
    block = min(64, max(16, 1 << (channels - 1).bit_length()))
    tile_length = min(128, TILE // block)
    per_sequence = -(-length // tile_length)
    tiles = sequences * per_sequence
    # Two tiles each at least, or the rows of the table weigh against the tiles.
    splits = max(1, min(PROGRAMS // max(1, -(-channels // block)), -(-tiles // 2)))
    return Plan(length, channels, strides, tiles, per_sequence, tile_length, block, splits)


@torch.library.custom_op(
    "seqtrain::masked_batch_statistics",
    mutates_args=("running_mean", "running_var", "running_weight"),
)
def batch_statistics(
    x: Tensor,
    mask: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    running_weight: Tensor | None,
    num_batches: Tensor | None,
    momentum: float | None,
    eps: float,
    min_count: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, inverse standard deviation and share for :func:`normalize`, and 1 if the batch counts.

    The running statistics move. They take the place of the batch's own where fewer positions than
    ``min_count`` are real; then nothing moves and share is 0. The counter is read only.
    """
    cut = plan_pass(x)
    mean, invstd, share, counted = _statistics_like(x, mask)
    counts = x.new_empty(cut.splits, dtype=torch.int64)
    table = mean.new_empty((3, cut.splits, cut.channels))
    grid = (-(-cut.channels // MERGED["K"]),)
    with torch.cuda.device_of(x):
        kernels.moments_of_tiles[cut.grid](x, _bytes(mask), counts, table, **cut.arguments)
        kernels.settle[grid](
            counts,
            table,
            running_mean,
            running_var,
            running_weight,
            num_batches,
            mean,
            invstd,
            share,
            counted,
            momentum,
            eps,
            min_count,
            cut.channels,
            cut.splits,
            **MERGED,
        )
    return mean, invstd, share, counted


@batch_statistics.register_fake
def _statistics_like(
    x: Tensor,
    mask: Tensor,  # noqa: ARG001
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, invstd = (x.new_empty(x.shape[2], dtype=wide_dtype(x.dtype)) for _ in range(2))
    return mean, invstd, mean.new_empty(1), mean.new_empty(1, dtype=torch.int64)


@torch.library.custom_op("seqtrain::masked_normalize", mutates_args=())
def normalize(
    x: Tensor,
    mask: Tensor,
    mean: Tensor,
    invstd: Tensor,
    share: Tensor | None,  # noqa: ARG001
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    """``residual + relu((x - mean) * invstd * weight + bias)``, 0 at padding.

    A tensor like ``x``, in the dtype of the residual if that is wider: under autocast the sum over
    blocks stays in float32.

    Args:
        x: Features.
        mask: True where real.
        mean: Its dtype is that of the arithmetic.
        invstd: One over the standard deviation.
        share: ``(1,)``, the derivative of the mean by a real position: 1/n, or 0 where mean and
            ``invstd`` are constants. ``None`` for constants.
        weight: Scale.
        bias: Shift.
        residual: Of the shape of ``x``.
        relu: Leave out what is negative.
    """
    like, x, residual = _of_one_layout(x, residual)
    out = torch.empty_like(like, dtype=_dtype_of_sum(x, residual))
    cut = plan_pass(out)
    with torch.cuda.device_of(out):
        kernels.write_normal[cut.grid](
            x, _bytes(mask), mean, invstd, weight, bias, residual, out, RELU=relu, **cut.arguments
        )
    return out


@normalize.register_fake
def _like_sum(x: Tensor, *others: Any) -> Tensor:
    residual = others[-2]
    return torch.empty_like(x, dtype=_dtype_of_sum(x, residual))


def _dtype_of_sum(x: Tensor, residual: Tensor | None) -> torch.dtype:
    return x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)


@torch.library.custom_op("seqtrain::masked_normalize_sums", mutates_args=())
def gradient_sums(
    x: Tensor,
    grad: Tensor,
    mask: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    relu: bool,
) -> Tensor:
    """``(2, C)``: sums of the upstream gradient, past the relu, and of it times x̂."""
    out, x, grad = _of_one_layout(x, grad)
    cut = plan_pass(out)
    table = mean.new_empty((2, cut.splits, cut.channels))
    with torch.cuda.device_of(out):
        kernels.gradient_sums_of_tiles[cut.grid](
            x, grad, _bytes(mask), mean, invstd, weight, bias, table, RELU=relu, **cut.arguments
        )
    return table.sum(1)


@gradient_sums.register_fake
def _two_rows(x: Tensor, grad: Tensor, mask: Tensor, mean: Tensor, *_: Any) -> Tensor:  # noqa: ARG001
    return mean.new_empty((2, x.shape[2]))


@torch.library.custom_op("seqtrain::masked_normalize_gradient", mutates_args=())
def input_gradient(
    x: Tensor,
    grad: Tensor,
    mask: Tensor,
    mean: Tensor,
    invstd: Tensor,
    share: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    sums: Tensor | None,
    relu: bool,
) -> Tensor:
    """The gradient of ``x``, given that of what came of it and its :func:`gradient_sums`."""
    out: Tensor
    out, x, grad = _of_one_layout(x, grad)
    cut = plan_pass(out)
    with torch.cuda.device_of(out):
        kernels.write_gradient[cut.grid](
            x,
            grad,
            _bytes(mask),
            mean,
            invstd,
            share,
            weight,
            bias,
            sums,
            out,
            RELU=relu,
            **cut.arguments,
        )
    return out


@input_gradient.register_fake
def _like_first(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    *tensors, _residual, ctx.relu = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, mask, mean, invstd, share, weight, bias = ctx.saved_tensors
    for_x, for_weight, for_bias, for_residual = (ctx.needs_input_grad[at] for at in (0, 5, 6, 7))
    grad_residual = select_real(grad, mask[..., None]) if for_residual else None
    if torch.is_grad_enabled():
        grad_x, grad_weight, grad_bias = _differentiable_gradients(ctx, grad)
    else:
        sums = None
        if share is not None or for_weight or for_bias:
            sums = gradient_sums(x, grad, mask, mean, invstd, weight, bias, ctx.relu)
        of_stats = (mean, invstd, share, weight, bias, sums)
        grad_x = input_gradient(x, grad, mask, *of_stats, ctx.relu) if for_x else None
        # Autograd brings them to the dtype of the parameters.
        of_bias, of_weight = (None, None) if sums is None else sums.unbind()
        grad_weight, grad_bias = of_weight if for_weight else None, of_bias if for_bias else None
    return grad_x, None, None, None, None, grad_weight, grad_bias, grad_residual, None


def _differentiable_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Those of x, weight and bias by the plain form, which can be differentiated again."""
    x, mask, mean, invstd, share, weight, bias = ctx.saved_tensors
    statistics = Statistics(mean, invstd, share, share, (0, 1))
    with torch.enable_grad():
        out = standardize(x, mask[..., None], statistics, weight, bias, 2)
        out = F.relu(out) if ctx.relu else out
    places = (x, weight, bias)
    wanted = [t for t in places if t is not None and t.requires_grad]
    grads = iter(torch.autograd.grad(out, wanted, grad, create_graph=True) if wanted else ())
    return tuple(None if t is None or not t.requires_grad else next(grads) for t in places)


normalize.register_autograd(_gradients, setup_context=_remember)


def _of_one_layout(x: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """An empty tensor like ``x``, then all of them with its strides, copied if need be."""
    like = torch.empty_like(x)
    return like, *(
        t if t is None or t.stride() == like.stride() else torch.empty_like(like).copy_(t)
        for t in (x, *others)
    )


def _bytes(mask: Tensor) -> Tensor:
    return mask.contiguous().view(torch.uint8)
