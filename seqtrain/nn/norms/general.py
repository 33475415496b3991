"""``masked_norm`` as modules, without and with learned scale and shift."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import Parameter, UninitializedParameter

from seqtrain.nn.norms.context import given_or_current
from seqtrain.nn.norms.functional import masked_norm
from seqtrain.nn.norms.masks import broadcast_mask, select_real
from seqtrain.nn.norms.standardize import per_channel
from seqtrain.nn.norms.whole import Whole, whole_in_fx


class MaskedNorm(Whole):
    """Mean 0 and variance 1 over the real positions along ``dims``; nothing is learned.

    Args:
        batched: Normalize along the first dimension instead of the last.
        dims: The dimensions to normalize along, in place of ``batched``.
        eps: Added to the variance.
        correction: The variance divides by n minus this.
        constant: What a selection without variance comes out as: ``"zero"``, or ``"keep"`` to
            leave it unaltered.
    """

    def __init__(
        self,
        batched: bool = False,
        *,
        dims: int | Sequence[int] | None = None,
        eps: float = 0.0,
        correction: int = 0,
        constant: Literal["zero", "keep"] = "zero",
    ) -> None:
        super().__init__()
        along = 0 if batched else -1
        self.dims = along if dims is None else dims
        self.eps = eps
        self.correction = correction
        self.constant = constant

    @whole_in_fx
    def forward(
        self, input: Float[Tensor, "..."], mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "..."]:
        """``input`` normalized, 0 where ``mask``, or else that of ``mask_context``, is False."""
        return masked_norm(
            input,
            given_or_current(mask),
            self.dims,
            eps=self.eps,
            correction=self.correction,
            constant=self.constant,
        )

    def extra_repr(self) -> str:
        """The settings that the module's repr shows."""
        return (
            f"dims={self.dims}, eps={self.eps}, correction={self.correction}, "
            f"constant={self.constant!r}"
        )


class AffineMaskedNorm(MaskedNorm):
    """:class:`MaskedNorm`, then a learned scale and shift for each feature of the last dimension.

    They have the shape ``(C,)``, so they fit any batch size and length.

    Args:
        num_features: Size C of the last dimension.
        batched: As in :class:`MaskedNorm`, like the keyword arguments.
        device: Where the parameters are made.
        dtype: Dtype of the parameters.
        options: The keyword arguments of :class:`MaskedNorm`.
    """

    def __init__(
        self,
        num_features: int,
        batched: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(batched, **options)
        self.weight = Parameter(torch.ones(num_features, device=device, dtype=dtype))
        self.bias = Parameter(torch.zeros(num_features, device=device, dtype=dtype))

    @whole_in_fx
    def forward(
        self, input: Float[Tensor, "..."], mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "..."]:
        """``input`` normalized, scaled and shifted; 0 at padding."""
        mask = given_or_current(mask)
        normal = super().forward(input, mask)
        weight, bias = per_channel(self.weight, input, -1), per_channel(self.bias, input, -1)
        out = (normal * weight + bias).to(input.dtype)
        return select_real(out, broadcast_mask(mask, input))


class LazyAffineMaskedNorm(LazyModuleMixin, AffineMaskedNorm):
    """:class:`AffineMaskedNorm` that learns the number of features from its first input."""

    cls_to_become = AffineMaskedNorm

    def __init__(
        self,
        batched: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(0, batched, **options)
        later: dict[str, Any] = {"device": device, "dtype": dtype}
        for name in ("weight", "bias"):
            setattr(self, name, UninitializedParameter(**later))

    def initialize_parameters(self, input: Tensor, mask: Tensor | None = None) -> None:  # noqa: ARG002
        """Make the parameters for the features of ``input``."""
        if self.has_uninitialized_params():
            for parameter, value in ((self.weight, 1.0), (self.bias, 0.0)):
                assert isinstance(parameter, UninitializedParameter)
                parameter.materialize(input.shape[-1:])
                nn.init.constant_(parameter, value)
