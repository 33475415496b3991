"""torch's own batch norm over rows of channels: of all positions, or of the real ones."""

import torch
import torch.nn.functional as F
from torch import Tensor

from seqtrain.nn.norms.running import RunningStatistics


def plain_batch_norm(
    input: Tensor,
    running: RunningStatistics | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    channel_dim: int,
) -> Tensor:
    """``torch.nn.functional.batch_norm``, with the channels anywhere and the batches counted."""
    gain = 0.0 if momentum is None else momentum
    if training and running is not None and running.num_batches is not None:
        running.num_batches.add_(1)
        gain = 1.0 / float(running.num_batches) if momentum is None else momentum
    mean, var = (None, None) if running is None else (running.mean, running.var)
    if mean is not None:
        # A half-precision model's parameters beside its statistics, which stay wide.
        weight, bias = (None if p is None else p.to(mean.dtype) for p in (weight, bias))
    if channel_dim % input.ndim == 1:
        return F.batch_norm(input, mean, var, weight, bias, training, gain, eps)
    moved = input.movedim(channel_dim, -1)
    rows = moved.reshape(-1, moved.shape[-1])
    out = F.batch_norm(rows, mean, var, weight, bias, training, gain, eps)
    return out.view(moved.shape).movedim(-1, channel_dim)


def real_rows(
    input: Tensor, mask: Tensor, channel_dim: int, *beside: Tensor | None
) -> Tensor | None:
    """Which rows of channels are real, where gathering them is the fastest way, else ``None``.

    It is on the CPU in eager mode, where torch's kernel makes one pass for what the masked form
    needs several for. The number of rows depends on the data, which a traced program cannot have
    and a GPU would have to be waited for.

    Args:
        input: Features.
        mask: Of the input's rank.
        channel_dim: Where the channels are.
        beside: Parameters and buffers, which have to have the input's dtype.
    """
    if (
        input.device.type != "cpu"
        or input.dtype not in (torch.float32, torch.float64)
        or any(t is not None and t.dtype != input.dtype for t in beside)
        or mask.shape[channel_dim] != 1
        or torch.compiler.is_compiling()
    ):
        return None
    return mask.flatten().nonzero().squeeze(1)


def batch_norm_of_rows(
    input: Tensor,
    rows: Tensor,
    running: RunningStatistics | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    channel_dim: int,
) -> Tensor:
    """The plain batch norm of ``rows``, put back among zeros."""
    moved = input.movedim(channel_dim, -1)
    everything = moved.reshape(-1, moved.shape[-1])
    real = everything.index_select(0, rows)
    normal = plain_batch_norm(real, running, weight, bias, training, momentum, eps, 1)
    out = torch.zeros_like(everything).index_copy_(0, rows, normal)
    return out.view(moved.shape).movedim(-1, channel_dim)
