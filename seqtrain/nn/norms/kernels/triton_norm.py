"""Masked batch norm on a GPU.

Forward moves 2ρ + 1 tensors through memory and backward 4ρ + 1, where ρ is the share of real
positions: what is padding is never read. Experimental: never yet run on a GPU.
"""

import functools
import importlib.util

import torch
from torch import Tensor

from seqtrain.nn.norms.kernels.call import Call
from seqtrain.nn.norms.masks import view_mask
from seqtrain.nn.norms.moments import wide_dtype
from seqtrain.nn.norms.running import RunningStatistics, running_standard
from seqtrain.nn.norms.standardize import per_channel

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""Of features. Numbers that kernels are called with are float32, too coarse beside float64."""


def batch_norm(call: Call) -> Tensor | None:
    """The result of the call.

    ``None`` for masks per channel, float64, and where Triton is missing. A view with gaps in memory
    is copied.
    """
    input, running, channel_dim = call.input, call.running, call.channel_dim
    weight, bias, training, eps = call.weight, call.bias, call.training, call.eps
    mask = view_mask(call.mask, input, channel_dim)
    if mask.shape[channel_dim] != 1 or input.dtype not in DTYPES or not usable(input.device):
        return None
    if running is not None and training and not _can_move(running, input.dtype, call.momentum):
        return None
    # Here, because it takes Triton, and compiles kernels when they are first called.
    from seqtrain.nn.norms.kernels import triton_ops

    settled = None if running is None else running_standard(running, input, channel_dim, eps)
    weight, bias = (None if p is None else _row(p, input, channel_dim) for p in (weight, bias))
    x, real = _by_sequence(input, channel_dim), _by_sequence(mask, channel_dim).squeeze(-1)
    if settled is not None and not training:
        mean, invstd = (t.flatten().to(wide_dtype(t.dtype)) for t in settled[:2])
        share = None
    else:
        mean, invstd, share = _batch_statistics(
            x, real, running, call.momentum, eps, call.min_count
        )
    residual = None if call.residual is None else _by_sequence(call.residual, channel_dim)
    out: Tensor = triton_ops.normalize(
        x, real, mean, invstd, share, weight, bias, residual, call.relu
    )
    return out.reshape(input.movedim(channel_dim, -1).shape).movedim(-1, channel_dim)


@torch.no_grad()
def _batch_statistics(
    x: Tensor,
    real: Tensor,
    running: RunningStatistics | None,
    momentum: float | None,
    eps: float,
    min_count: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """What to normalize by, of which the running statistics move."""
    from seqtrain.nn.norms.kernels import triton_ops

    mean, var, num_batches, weight = running or (None, None, None, None)
    *statistics, counted = triton_ops.batch_statistics(
        x, real, mean, var, weight, num_batches, momentum, eps, min_count
    )
    if num_batches is not None:
        num_batches.add_(counted[0])
    return tuple(statistics)


def usable(device: torch.device) -> bool:
    """True if Triton is installed and compiles for this device: NVIDIA's from Ampere on."""
    return device.type == "cuda" and _compiles_for(device)


# What the machine is like is no part of a traced program. Said as by
# torch.compiler.assume_constant_result, which would import torch's whole compiler here.
usable._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _compiles_for(device: torch.device) -> bool:
    installed = importlib.util.find_spec("triton") is not None
    return installed and torch.cuda.get_device_capability(device) >= (8, 0)


def _by_sequence(values: Tensor, channel_dim: int) -> Tensor:
    """``(B, L, C)`` from any rank: a batch of positions alone is one sequence."""
    moved = values.movedim(channel_dim, -1)
    return moved.unsqueeze(0) if moved.ndim == 2 else moved.flatten(1, -2)


def _row(values: Tensor, input: Tensor, channel_dim: int) -> Tensor:
    """``(C,)`` without gaps, and of as many channels as the input has, or an error."""
    return per_channel(values, input, channel_dim).flatten().contiguous()


def _can_move(running: RunningStatistics, dtype: torch.dtype, momentum: float | None) -> bool:
    """True if these are buffers as every module has; the plain form knows what to say of others."""
    return all(
        buffer is None or (buffer.dtype == wide_dtype(dtype) and buffer.is_contiguous())
        for buffer in (running.mean, running.var, running.weight)
    ) and (momentum is not None or running.num_batches is not None)
