"""What a batch norm subtracts and divides by, and the running statistics it keeps."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from seqtrain.nn.norms.moments import Moments, wide_dtype
from seqtrain.nn.norms.standardize import Statistics, inverse_root, other_dims, per_channel
from seqtrain.nn.norms.watching import is_transformed


class RunningStatistics(NamedTuple):
    """The buffers of a batch norm, each of shape ``(C,)`` but for the counter."""

    mean: Tensor
    var: Tensor
    num_batches: Tensor | None = None
    weight: Tensor | None = None
    """Running number of real positions; given, a batch counts by its positions."""

    def update(
        self,
        moments: Moments,
        enough: Tensor,
        momentum: float | None,
        *,
        root_eps: float | None = None,
    ) -> None:
        """Move towards ``moments`` in the channels that have ``enough`` real positions.

        Args:
            moments: Of this batch, with C elements or 1 in each field.
            enough: Which channels may move, with C elements or 1.
            momentum: Weight of this batch; ``None`` gives the plain average over batches.
            root_eps: Given, it is ``σ = sqrt(var + root_eps)`` that is averaged, of biased
                variances, and ``var`` is what belongs to the average of σ.
        """
        gain, num_batches = count_batch(self.num_batches, enough, momentum)
        if self.weight is not None:
            count = moments.n.flatten().to(self.weight.dtype)
            # NaN stands for unknown, as after loading a checkpoint that has no such buffer.
            before = torch.where(self.weight.isnan(), count, self.weight)
            total = before + gain * (count - before)
            gain = gain * count / total
            write(self.weight, torch.where(enough.flatten(), total, self.weight))
        move(self.mean, moments.mean, gain, enough)
        if root_eps is None:
            move(self.var, moments.variance(correction=1), gain, enough)
        else:
            sigma = (self.var + root_eps).sqrt()
            sigma_batch = (moments.variance() + root_eps).sqrt()
            sigma = (1 - gain) * sigma + gain * sigma_batch.flatten()
            var = (sigma.square() - root_eps).clamp(min=0)
            write(self.var, torch.where(enough.flatten(), var, self.var))
        write(self.num_batches, num_batches)


def count_batch(
    num_batches: Tensor | None, enough: Tensor, momentum: float | None
) -> tuple[Tensor | float, Tensor | None]:
    """The weight of a batch in the running statistics, and the counter if it moves any channel."""
    counted = None if num_batches is None else num_batches + enough.any()
    if momentum is not None:
        return momentum, counted
    if counted is None:
        raise ValueError("momentum=None averages over batches: num_batches_tracked is needed")
    # The counter is still 0 when no channel of the first batch has enough positions.
    return 1 / counted.clamp(min=1).double(), counted


def move(buffer: Tensor, value: Tensor, gain: Tensor | float, enough: Tensor) -> None:
    """Write ``(1 - gain) * buffer + gain * value`` into ``buffer`` where there is ``enough``.

    In place, because rebinding would keep each step's autograd graph alive. By selection, because
    a channel that must not move may hold NaN in ``value``.

    Raises:
        TypeError: The buffer is narrower than float32, where small steps would be lost.
    """
    if buffer.dtype != wide_dtype(buffer.dtype):
        raise TypeError(f"running statistics in {buffer.dtype} would stall: keep them in float32")
    moved = (1 - gain) * buffer + gain * value.flatten()
    write(buffer, torch.where(enough.flatten(), moved, buffer))


def write(buffer: Tensor | None, value: Tensor | None) -> None:
    """Put ``value`` into ``buffer``, in place, if there is one.

    Raises:
        RuntimeError: A transform of ``torch.func`` forbids it.
    """
    if buffer is None or value is None:
        return
    try:
        buffer.copy_(value)
    except RuntimeError as error:
        if not is_transformed():
            raise
        raise RuntimeError(
            "running statistics cannot be updated inside this torch.func transform: pass "
            "parameters and buffers through torch.func.functional_call, or use eval() or "
            "track_running_stats=False"
        ) from error


def running_standard(
    running: RunningStatistics, input: Tensor, channel_dim: int, eps: float
) -> Statistics:
    """Standardize by the running statistics, which are constants."""
    mean = per_channel(running.mean, input, channel_dim)
    invstd = inverse_root(per_channel(running.var, input, channel_dim), eps)
    return Statistics(mean, invstd, None, None, other_dims(input, channel_dim))


def batch_standard(
    moments: Moments,
    enough: Tensor,
    fallback: Statistics | None,
    eps: float,
    dims: tuple[int, ...],
    group: dist.ProcessGroup | None = None,
) -> Statistics:
    """Standardize by a batch, or by ``fallback`` (without one to 0) where n is not ``enough``."""
    invstd = inverse_root(moments.variance(), eps)
    share = torch.where(enough, 1 / moments.n.clamp(min=1).to(invstd.dtype), 0.0)
    if fallback is None:
        mean, invstd = moments.mean, torch.where(enough, invstd, 0.0)
    else:
        mean = torch.where(enough, moments.mean, fallback.mean)
        invstd = torch.where(enough, invstd, fallback.invstd)
    # A clone, because torch.compile takes no tensor twice in the call of an autograd.Function.
    return Statistics(mean, invstd, share, share.clone(), dims, group)
