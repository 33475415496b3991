"""Batch norms of a model turned into masked ones and back, and folded into convolutions."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from seqtrain.nn.norms.batch import (
    MaskedBatchNorm,
    MaskedBatchNorm1d,
    MaskedBatchNorm2d,
    MaskedBatchNorm3d,
    MaskedSyncBatchNorm,
)
from seqtrain.nn.norms.context import given_or_current
from seqtrain.nn.norms.masks import place_mask, select_real
from seqtrain.nn.norms.whole import whole_in_fx

_MASKED: dict[type[_BatchNorm], type[MaskedBatchNorm]] = {
    nn.BatchNorm1d: MaskedBatchNorm1d,
    nn.BatchNorm2d: MaskedBatchNorm2d,
    nn.BatchNorm3d: MaskedBatchNorm3d,
    nn.SyncBatchNorm: MaskedSyncBatchNorm,
}
_PLAIN: dict[type[_BatchNorm], type[_BatchNorm]] = {
    masked: plain for plain, masked in _MASKED.items()
}


def convert_masked_batchnorm(module: nn.Module, **options: Any) -> nn.Module:
    """The model with every batch norm of torch replaced by its masked counterpart.

    Parameters and buffers are kept, not copied, so an optimizer goes on; a module that occurs
    twice stays one; ``training`` stays. The model's own code, which calls ``norm(x)``, need not
    change: masks come from :func:`mask_context`. A subclass with a meaning of its own is left
    as it is, with a warning.

    Args:
        module: A model, changed in place, or a single batch norm.
        options: Keyword arguments of :class:`MaskedBatchNorm` for all of them.

    Returns:
        ``module``, or the replacement if it is a batch norm itself.
    """

    def masked(norm: _BatchNorm) -> _BatchNorm | None:
        kind = _MASKED.get(type(norm))
        return None if kind is None else _rebuilt(norm, kind, **options)

    return _replaced(module, masked, lambda norm: not isinstance(norm, MaskedBatchNorm))


def revert_masked_batchnorm(module: nn.Module) -> nn.Module:
    """The model with every masked batch norm replaced by torch's: the inverse of the conversion.

    Args:
        module: A model, changed in place, or a single masked batch norm.

    Raises:
        ValueError: A norm has its channels elsewhere than at dimension 1, where torch's have them.
    """

    def plain(norm: _BatchNorm) -> _BatchNorm | None:
        kind = _PLAIN.get(type(norm))
        if kind is None or not isinstance(norm, MaskedBatchNorm):
            return None
        if norm.channel_dim != 1:
            raise ValueError(f"{norm} cannot be torch's, which has its channels at dimension 1")
        return _rebuilt(norm, kind)

    return _replaced(module, plain, lambda norm: isinstance(norm, MaskedBatchNorm))


def convert_masked_sync_batchnorm(
    module: nn.Module, process_group: Any = None, **options: Any
) -> nn.Module:
    """The model with every batch norm replaced by a :class:`MaskedSyncBatchNorm`.

    Masked ones keep their own settings; the rest is as in :func:`convert_masked_batchnorm`.

    Args:
        module: A model, changed in place, or a single batch norm.
        process_group: The ranks that share statistics; all of them when not given.
        options: Keyword arguments of :class:`MaskedBatchNorm` for those that were not masked.
    """

    def synced(norm: _BatchNorm) -> _BatchNorm | None:
        if type(norm) not in {*_MASKED, *_PLAIN}:
            return None
        settings = options
        if isinstance(norm, MaskedBatchNorm):
            names = ("channel_dim", "min_count", "stat_weighting")
            settings = {name: getattr(norm, name) for name in names}
        return _rebuilt(norm, MaskedSyncBatchNorm, process_group=process_group, **settings)

    return _replaced(module, synced, lambda norm: not isinstance(norm, MaskedSyncBatchNorm))


def _rebuilt(norm: nn.Module, kind: type[_BatchNorm], **options: Any) -> _BatchNorm:
    """A norm of another kind around the same parameters and buffers."""
    assert isinstance(norm, _BatchNorm)
    # On the meta device, because what the constructor makes is replaced at once.
    rebuilt = kind(
        norm.num_features,
        norm.eps,
        norm.momentum,
        norm.affine,
        norm.track_running_stats,
        device="meta",
        **options,
    )
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(rebuilt, name, getattr(norm, name))
    if isinstance(rebuilt, MaskedBatchNorm):
        if rebuilt.running_weight is not None and norm.running_mean is not None:
            unknown = torch.full_like(norm.running_mean, torch.nan)
            rebuilt.running_weight = getattr(norm, "running_weight", unknown)
        rebuilt.widen_buffers()
    return rebuilt.train(norm.training)


def _replaced(
    module: nn.Module,
    convert: Callable[[_BatchNorm], _BatchNorm | None],
    concerned: Callable[[_BatchNorm], bool],
) -> nn.Module:
    """``module`` with every batch norm in it that is ``concerned`` converted."""
    converted: dict[nn.Module, _BatchNorm] = {}
    left = []
    for path, child in list(module.named_modules(remove_duplicate=False)):
        if not isinstance(child, _BatchNorm) or not concerned(child):
            continue
        new = converted.get(child) or convert(child)
        if new is None:
            left.append(f"{path or 'the module'} ({type(child).__name__})")
            continue
        converted[child] = new
        if not path:
            return new
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, new)
    if left:
        warnings.warn(f"batch norms left as they are: {', '.join(left)}", stacklevel=3)
    return module


class FoldedConv(nn.Module):
    """A convolution with a batch norm folded into its weights, and zeros at padding after it.

    Without these, padding would hold what the folded bias makes of it, and the next convolution
    would carry that into the real positions.
    """

    def __init__(self, conv: nn.Module, channel_dim: int) -> None:
        super().__init__()
        self.conv = conv
        self.channel_dim = channel_dim

    @whole_in_fx
    def forward(
        self, input: Float[Tensor, "..."], mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "..."]:
        """The convolved and normalized ``input``, 0 where ``mask`` (or the context's) is False.

        Args:
            input: What the convolution takes.
            mask: True where real, for the output of the convolution.
        """
        out: Tensor = self.conv(input)
        return select_real(out, place_mask(given_or_current(mask), out, self.channel_dim))


def fold_masked_conv_bn(conv: nn.modules.conv._ConvNd, norm: MaskedBatchNorm) -> FoldedConv:
    """One module that computes ``norm(conv(x), mask)`` in evaluation, called as ``(x, mask)``.

    Args:
        conv: A convolution, transposed or not; it is copied.
        norm: The norm after it, in evaluation mode and with running statistics.

    Raises:
        ValueError: One of them is in training mode, or there are no running statistics.
    """
    if conv.training or norm.training or norm.running_mean is None:
        raise ValueError("folding needs running statistics, and both modules in evaluation mode")
    transposed = isinstance(conv, nn.modules.conv._ConvTransposeNd)
    return FoldedConv(fuse_conv_bn_eval(conv, norm, transposed), norm.channel_dim)
