"""Masked batch norms that learn their number of channels from the first input."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from seqtrain.nn.norms.batch import (
    MaskedBatchNorm,
    MaskedBatchNorm1d,
    MaskedBatchNorm2d,
    MaskedBatchNorm3d,
)


class _LazyMaskedBatchNorm(LazyModuleMixin, MaskedBatchNorm):
    def __init__(
        self,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        **options: Any,
    ) -> None:
        # Without parameters and buffers at first, as in torch's own lazy batch norms.
        super().__init__(0, eps, momentum, False, False, device, dtype, **options)
        self.affine = affine
        self.track_running_stats = track_running_stats
        later: dict[str, Any] = {"device": device, "dtype": dtype}
        if affine:
            for name in ("weight", "bias") if bias else ("weight",):
                setattr(self, name, UninitializedParameter(**later))
        if track_running_stats:
            self.running_mean = UninitializedBuffer(**later)
            self.running_var = UninitializedBuffer(**later)
            self.num_batches_tracked = torch.zeros((), dtype=torch.long, device=device)
            if self.stat_weighting == "tokens":
                self.running_weight = UninitializedBuffer(**later)

    def reset_parameters(self) -> None:
        """Set parameters and running statistics to their first values, once they have a size."""
        if not self.has_uninitialized_params():
            super().reset_parameters()

    def initialize_parameters(self, input: Tensor, mask: Tensor | None = None) -> None:  # noqa: ARG002
        """Make parameters and buffers for the channels of ``input``."""
        if self.has_uninitialized_params():
            self.num_features = input.shape[self.channel_dim]
            for tensor in (*self.parameters(), *self.buffers()):
                if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
                    tensor.materialize((self.num_features,))
            self.widen_buffers()
            self.reset_parameters()


class LazyMaskedBatchNorm1d(_LazyMaskedBatchNorm, MaskedBatchNorm1d):
    """:class:`MaskedBatchNorm1d` without ``num_features``, which the first input gives."""

    cls_to_become = MaskedBatchNorm1d


class LazyMaskedBatchNorm2d(_LazyMaskedBatchNorm, MaskedBatchNorm2d):
    """:class:`MaskedBatchNorm2d` without ``num_features``, which the first input gives."""

    cls_to_become = MaskedBatchNorm2d


class LazyMaskedBatchNorm3d(_LazyMaskedBatchNorm, MaskedBatchNorm3d):
    """:class:`MaskedBatchNorm3d` without ``num_features``, which the first input gives."""

    cls_to_become = MaskedBatchNorm3d
