"""Masked batch norm on a GPU.

Forward moves 2ρ + 1 tensors through memory and backward 4ρ + 1, where ρ is the share of real
positions: what is padding is never read.
"""

import importlib.util

import torch
from torch import Tensor

from seqtrain.nn.norms.moments import Moments, wide_dtype
from seqtrain.nn.norms.running import RunningStatistics, batch_standard, running_standard
from seqtrain.nn.norms.standardize import Statistics, per_channel


def batch_norm(
    input: Tensor,
    mask: Tensor,
    running: RunningStatistics | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    channel_dim: int,
    min_count: int,
    *,
    relu: bool = False,
    residual: Tensor | None = None,
) -> Tensor | None:
    """``residual + relu(norm(input))``, 0 at padding; ``None`` where it cannot.

    Args:
        input: Features of any rank from 2; a view with gaps in memory is copied.
        mask: Bool, of the input's rank, with 1 channel.
        running: As in :func:`~seqtrain.nn.norms.kernels.choice.fused_batch_norm`, like all that
            follows up to ``min_count``.
        weight: ``(C,)``.
        bias: ``(C,)``.
        training: Normalize by this batch.
        momentum: Weight of this batch.
        eps: Added to the variance.
        channel_dim: Where the channels are.
        min_count: Fewest real positions.
        relu: Apply ``torch.relu`` to the normalized features.
        residual: Of the shape and dtype of ``input``, added last.
    """
    if mask.shape[channel_dim] != 1 or not usable(input.device):
        return None
    # Here, because it takes Triton, and compiles kernels when they are first called.
    from seqtrain.nn.norms.kernels import triton_ops

    weight, bias = (
        None if p is None else per_channel(p, input, channel_dim).flatten() for p in (weight, bias)
    )
    x, real = _by_sequence(input, channel_dim), _by_sequence(mask, channel_dim).squeeze(-1)
    with torch.no_grad():
        settled = None
        if running is not None:
            settled = _flat(running_standard(running, input, channel_dim, eps))
        if training or settled is None:
            moments = Moments(*triton_ops.masked_moments(x, real))
            enough = moments.n >= min_count
            statistics = batch_standard(moments, enough, settled, eps, ())
            if running is not None:
                running.update(moments, enough, momentum)
        else:
            statistics = settled
    wide = torch.promote_types(statistics.mean.dtype, wide_dtype(input.dtype))
    if residual is not None:
        residual = _by_sequence(residual, channel_dim)
    out: Tensor = triton_ops.masked_normalize(
        x,
        real,
        statistics.mean.to(wide),
        statistics.invstd.to(wide),
        statistics.mean_share,
        weight,
        bias,
        residual,
        relu,
    )
    return out.reshape(input.movedim(channel_dim, -1).shape).movedim(-1, channel_dim)


def usable(device: torch.device) -> bool:
    """Whether Triton is installed and compiles for this device: NVIDIA's from Ampere on."""
    return (
        device.type == "cuda"
        and importlib.util.find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def _by_sequence(values: Tensor, channel_dim: int) -> Tensor:
    """``(B, L, C)`` from any rank: a batch of positions alone is one sequence."""
    moved = values.movedim(channel_dim, -1)
    return moved.unsqueeze(0) if moved.ndim == 2 else moved.flatten(1, -2)


def _flat(statistics: Statistics) -> Statistics:
    return statistics._replace(
        mean=statistics.mean.flatten(), invstd=statistics.invstd.flatten(), dims=()
    )
