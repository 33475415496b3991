"""Running statistics replaced by the exact ones of a whole data set."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from seqtrain.nn.norms.batch import MaskedBatchNorm
from seqtrain.nn.norms.context import given_or_current
from seqtrain.nn.norms.masks import place_mask
from seqtrain.nn.norms.moments import Moments, masked_moments, merge_moments, pool_moments
from seqtrain.nn.norms.standardize import other_dims

Batch = TypeVar("Batch")


@torch.no_grad()
def update_bn_stats(
    model: nn.Module, batches: Iterable[Batch], forward: Callable[[nn.Module, Batch], object]
) -> None:
    """Set each batch norm's running statistics to those of all real positions in ``batches``.

    They are the pooled mean and unbiased variance of what the norm receives in evaluation, with
    the norms before it already set. So neither the order of the batches nor how the data is cut
    into them matters, beyond rounding in float64; an average over batches, as
    ``torch.optim.swa_utils.update_bn`` takes, depends on both. It takes one pass for each norm.

    A norm that is used several times in one forward pools its uses. One that never runs, and
    channels with fewer than two real positions, stay as they are. A :class:`MaskedSyncBatchNorm`
    pools over its ranks, each of which needs a batch. Masked and torch's own batch norms are set,
    complex ones are not. The channels are at a norm's ``channel_dim``, if it has one, and else at
    dimension 1, where torch's have them.

    Args:
        model: Its training mode is restored.
        batches: Gone through once per norm; an iterator is held as a list.
        forward: ``forward(model, batch)`` runs the model on a batch.
    """
    held = list(batches) if isinstance(batches, Iterator) else batches
    pending = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        while pending:
            first = _Collector()
            handles = [
                norm.register_forward_pre_hook(first.collect, with_kwargs=True) for norm in pending
            ]
            num_batches = 0
            try:
                for num_batches, batch in enumerate(held, start=1):  # noqa: B007
                    forward(model, batch)
            finally:
                for handle in handles:
                    handle.remove()
            if first.norm is None or first.moments is None:
                break
            _write(first.norm, first.moments, num_batches)
            pending.remove(first.norm)
    finally:
        for module, mode in modes.items():
            module.training = mode


class _Collector:
    """The moments of what one norm receives: of the first one that runs."""

    def __init__(self) -> None:
        self.norm: _BatchNorm | None = None
        self.moments: Moments | None = None

    def collect(self, norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of every norm that may be the first."""
        if self.norm is None and isinstance(norm, _BatchNorm):
            self.norm = norm
        if self.norm is norm:
            input, mask = _arguments(*args, **kwargs)
            if isinstance(norm, MaskedBatchNorm):
                mask = given_or_current(mask)
            channel_dim = getattr(norm, "channel_dim", 1)
            placed = place_mask(mask, input, channel_dim)
            new = masked_moments(input.double(), placed, other_dims(input, channel_dim))
            if self.moments is not None:
                pairs = zip(self.moments, new, strict=True)
                new = merge_moments(Moments(*(torch.stack(pair) for pair in pairs)))
            self.moments = new


def _arguments(input: Tensor, mask: Tensor | None = None, **_: Any) -> tuple[Tensor, Tensor | None]:
    """What a norm was called with, by position or by name."""
    return input, mask


def _write(norm: _BatchNorm, moments: Moments, num_batches: int) -> None:
    """The moments into the buffers of the norm, after pooling over its ranks."""
    group = norm.ranks() if isinstance(norm, MaskedBatchNorm) else None
    if group is not None:
        moments = pool_moments(moments, group)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    enough = moments.n.flatten() >= 2
    for buffer, values in (
        (norm.running_mean, moments.mean),
        (norm.running_var, moments.variance(correction=1)),
    ):
        buffer.copy_(torch.where(enough, values.flatten(), buffer))
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.fill_(num_batches)
    if isinstance(norm, MaskedBatchNorm) and norm.running_weight is not None:
        norm.running_weight.copy_(moments.n.flatten().double() / num_batches)
