"""Which fused kernel, if any, takes a call."""

from torch import Tensor

from seqtrain.nn.norms.kernels import rows_cpu, triton_norm
from seqtrain.nn.norms.running import RunningStatistics

KERNELS = {"cpu": rows_cpu.batch_norm, "cuda": triton_norm.batch_norm}
"""By type of device."""


def fused_batch_norm(
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
) -> Tensor | None:
    """Masked batch norm by the kernel for the input's device; ``None`` where none covers the call.

    A kernel does all that the plain form does, the update of ``running`` included, or it returns
    ``None`` and has done nothing.

    Args:
        input: Features of any rank from 2, any strides and any dtype.
        mask: Bool, of the input's rank, with 1 or all channels at ``channel_dim``.
        running: To be updated when ``training``, else what to normalize by.
        weight: ``(C,)``.
        bias: ``(C,)``.
        training: Normalize by this batch.
        momentum: As in :func:`~seqtrain.nn.norms.masked_batch_norm`, like all that follows.
        eps: Added to the variance.
        channel_dim: Where the channels are.
        min_count: Fewer real positions normalize as in evaluation and leave ``running`` alone.
    """
    kernel = KERNELS.get(input.device.type)
    if kernel is None:
        return None
    return kernel(
        input, mask, running, weight, bias, training, momentum, eps, channel_dim, min_count
    )
