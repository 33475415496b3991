"""Masked complex batch norm: real and imaginary part whitened together, or each on its own."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Complex
from torch import Tensor
from torch.nn.parameter import Parameter

from seqtrain.nn.norms.batch import MaskedBatchNorm, MaskedBatchNorm1d, MaskedBatchNorm2d
from seqtrain.nn.norms.context import given_or_current
from seqtrain.nn.norms.masks import place_mask, select_real
from seqtrain.nn.norms.moments import count_real, wide_dtype
from seqtrain.nn.norms.running import count_batch, move, write
from seqtrain.nn.norms.standardize import other_dims, per_channel
from seqtrain.nn.norms.whole import Whole, whole_in_fx
from seqtrain.nn.norms.wide import WideBuffers


class Symmetric(NamedTuple):
    """A symmetric 2 × 2 matrix per channel, over (real, imaginary)."""

    rr: Tensor
    ii: Tensor
    ri: Tensor

    def detach(self) -> "Symmetric":
        """The same numbers, which no derivative passes."""
        return Symmetric(*(entry.detach() for entry in self))

    def select(self, where: Tensor, other: "Symmetric") -> "Symmetric":
        """These entries where True, else the ``other`` ones."""
        return Symmetric(*(torch.where(where, a, b) for a, b in zip(self, other, strict=True)))


class ComplexMoments(NamedTuple):
    """Statistics of real positions; every reduced dimension is kept with size 1."""

    n: Tensor
    mean: Tensor
    m2: Symmetric
    """Sums of squared deviations, and of the products of both parts' deviations."""

    def covariance(self, correction: int = 0) -> Symmetric:
        """``m2 / (n - correction)``, with a divisor of at least 1."""
        divisor = (self.n - correction).clamp(min=1)
        return Symmetric(*(entry / divisor for entry in self.m2))


def complex_moments(input: Tensor, mask: Tensor | None, channel_dim: int) -> ComplexMoments:
    """Count, mean and second moments per channel, by the corrected two passes of the real form."""
    dims = other_dims(input, channel_dim)
    n = count_real(input, mask, dims)
    divisor = n.clamp(min=1)
    first = select_real(input, mask).sum(dims, keepdim=True) / divisor
    centred = select_real(input - first, mask)
    error = centred.sum(dims, keepdim=True) / divisor

    def product(a: Tensor, b: Tensor, error_a: Tensor, error_b: Tensor) -> Tensor:
        return (a * b).sum(dims, keepdim=True) - n * error_a * error_b

    real, imag = (centred.real, error.real), (centred.imag, error.imag)
    m2 = Symmetric(
        *(product(a, b, ea, eb) for (a, ea), (b, eb) in ((real, real), (imag, imag), (real, imag)))
    )
    return ComplexMoments(n, first + error, m2)


def inverse_square_root(covariance: Symmetric, eps: float) -> Symmetric:
    """``(covariance + δ I) ** (-1/2)``, and zeros where that does not exist.

    δ is ``eps`` and, relative to the trace, what keeps the determinant positive in this precision:
    rounding of the product of two variances exceeds ``eps`` by far when these are large and the
    parts are correlated.
    """
    rr, ii, ri = covariance
    jitter = eps + 4 * torch.finfo(rr.dtype).eps * (rr + ii)
    rr, ii = rr + jitter, ii + jitter
    determinant = rr * ii - ri * ri
    exists = determinant > 0
    root = torch.where(exists, determinant, 1.0).sqrt()
    scale = torch.where(exists, 1 / (root * (rr + ii + 2 * root).sqrt()), 0.0)
    return Symmetric((ii + root) * scale, (rr + root) * scale, -ri * scale)


class MaskedComplexBatchNorm(Whole, WideBuffers):
    """Batch norm of complex features over real positions (Trabelsi et al. 2018, arXiv:1705.09792).

    ``V^(-1/2) (x - μ)`` with V the 2 × 2 covariance of real and imaginary part has the identity for
    covariance; ``weight``, a symmetric matrix that starts at 1/√2 times the identity, scales it so
    that ``|y|²`` is 1 on average. Running covariances start at half the identity, so that a fresh
    module in evaluation leaves its input as it is, but for ``eps``.

    Args:
        num_features: Number of channels C.
        eps: Added to both variances.
        momentum: Weight of a batch in the running statistics; ``None`` for their plain average.
        affine: Learn ``weight`` ``(C, 3)``, the entries rr, ii and ri, and ``bias`` ``(C, 2)``.
        track_running_stats: Keep ``running_mean`` ``(C,)``, complex, and ``running_covar``
            ``(C, 3)``, unbiased.
        device: Where parameters and buffers are made.
        dtype: complex64 or complex128.
        channel_dim: Where the channels are.
        min_count: In training a channel with fewer real positions is normalized as in evaluation
            and leaves the running statistics alone; without these it comes out as ``bias``.
    """

    running_mean: Tensor | None
    running_covar: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype = torch.complex64,
        *,
        channel_dim: int = 1,
        min_count: int = 2,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.channel_dim = channel_dim
        self.min_count = min_count
        where: dict[str, Any] = {"device": device, "dtype": dtype.to_real()}
        self.weight = Parameter(torch.empty(num_features, 3, **where)) if affine else None
        self.bias = Parameter(torch.empty(num_features, 2, **where)) if affine else None
        buffers: dict[str, Tensor | None] = dict.fromkeys(
            ("running_mean", "running_covar", "num_batches_tracked")
        )
        if track_running_stats:
            buffers["running_mean"] = torch.zeros(num_features, device=device, dtype=dtype)
            buffers["running_covar"] = torch.empty(num_features, 3, **where)
            buffers["num_batches_tracked"] = torch.zeros((), device=device, dtype=torch.long)
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Forget all batches."""
        with torch.no_grad():
            if self.running_mean is not None:
                self.running_mean.zero_()
            if self.running_covar is not None:
                self.running_covar.copy_(self.running_covar.new_tensor([0.5, 0.5, 0.0]))
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Set parameters and running statistics to their first values."""
        self.reset_running_stats()
        with torch.no_grad():
            if self.weight is not None and self.bias is not None:
                self.weight.copy_(self.weight.new_tensor([0.5**0.5, 0.5**0.5, 0.0]))
                self.bias.zero_()

    @whole_in_fx
    def forward(
        self, input: Complex[Tensor, "..."], mask: Bool[Tensor, "..."] | None = None
    ) -> Complex[Tensor, "..."]:
        """``input`` whitened over its real positions, with zeros at padding, in its dtype.

        Args:
            input: Complex features with C channels at ``channel_dim``.
            mask: True where real, without the channel dimension or with 1 or C channels there;
                without one, that of ``mask_context``; without that too, all positions count.
        """
        self._check_input_dim(input)
        placed = place_mask(given_or_current(mask), input, self.channel_dim)
        wide = input.to(wide_dtype(input.dtype))
        mean, whitening = self._statistics(wide, placed)
        deviation = select_real(wide - mean, placed)
        real, imag = deviation.real, deviation.imag
        rr, ii, ri = whitening
        real, imag = rr * real + ri * imag, ri * real + ii * imag
        if self.weight is not None and self.bias is not None:
            rr, ii, ri, shift_real, shift_imag = (
                per_channel(column, input, self.channel_dim)
                for column in (*self.weight.unbind(1), *self.bias.unbind(1))
            )
            real, imag = (
                rr * real + ri * imag + shift_real,
                ri * real + ii * imag + shift_imag,
            )
        out = select_real(torch.complex(real, imag), placed)
        return out.to(input.dtype)

    def _statistics(self, input: Tensor, mask: Tensor | None) -> tuple[Tensor, Symmetric]:
        """Mean and whitening matrix to use, as functions of ``input`` where it decides them."""
        settled = self._settled(input)
        if settled is not None and not self.training:
            return settled
        moments = complex_moments(input, mask, self.channel_dim)
        enough = moments.n >= self.min_count
        whitening = inverse_square_root(moments.covariance(), self.eps)
        if settled is None:
            zeros = Symmetric(*(torch.zeros_like(entry) for entry in whitening))
            return moments.mean, whitening.select(enough, zeros)
        self._update(moments, enough)
        mean = torch.where(enough, moments.mean, settled[0])
        return mean, whitening.select(enough, settled[1])

    def _settled(self, input: Tensor) -> tuple[Tensor, Symmetric] | None:
        """Mean and whitening matrix of the running statistics."""
        if self.running_mean is None or self.running_covar is None:
            return None
        # Cloned, because the update in place must not reach what this batch is normalized by.
        mean, *covariance = (
            per_channel(values, input, self.channel_dim).clone()
            for values in (self.running_mean, *self.running_covar.unbind(1))
        )
        return mean, inverse_square_root(Symmetric(*covariance), self.eps)

    @torch.no_grad()
    def _update(self, moments: ComplexMoments, enough: Tensor) -> None:
        """Move the running statistics towards this batch."""
        assert self.running_mean is not None
        assert self.running_covar is not None
        gain, num_batches = count_batch(self.num_batches_tracked, enough, self.momentum)
        moments = ComplexMoments(moments.n, moments.mean.detach(), moments.m2.detach())
        move(self.running_mean, moments.mean, gain, enough)
        for column, entry in zip(
            self.running_covar.unbind(1), moments.covariance(correction=1), strict=True
        ):
            move(column, entry, gain, enough)
        write(self.num_batches_tracked, num_batches)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected at least 2D input (got {input.ndim}D input)")

    def extra_repr(self) -> str:
        """The settings that the module's repr shows."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, track_running_stats={self.track_running_stats}, "
            f"channel_dim={self.channel_dim}, min_count={self.min_count}"
        )


class MaskedComplexBatchNorm1d(MaskedComplexBatchNorm):
    """Masked complex batch norm of ``(B, C)``, ``(B, C, L)`` or ``(B, L, C)``."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim not in (2, 3):
            raise ValueError(f"expected 2D or 3D input (got {input.ndim}D input)")


class MaskedComplexBatchNorm2d(MaskedComplexBatchNorm):
    """Masked complex batch norm of 4-D input."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim != 4:
            raise ValueError(f"expected 4D input (got {input.ndim}D input)")


class _Naive(Whole):
    """Two real batch norms side by side."""

    part: type[MaskedBatchNorm]

    def __init__(self, num_features: int, *args: Any, **options: Any) -> None:
        super().__init__()
        self.bn_r = self.part(num_features, *args, **options)
        self.bn_i = self.part(num_features, *args, **options)

    @whole_in_fx
    def forward(
        self, input: Complex[Tensor, "..."], mask: Bool[Tensor, "..."] | None = None
    ) -> Complex[Tensor, "..."]:
        """``input`` with both parts normalized over its real positions, with zeros at padding."""
        return torch.complex(self.bn_r(input.real, mask), self.bn_i(input.imag, mask))


class NaiveMaskedComplexBatchNorm1d(_Naive):
    """:class:`MaskedBatchNorm1d` of the real and of the imaginary part, each with its own settings.

    Their correlation stays. Arguments are those of :class:`MaskedBatchNorm1d`.
    """

    part = MaskedBatchNorm1d


class NaiveMaskedComplexBatchNorm2d(_Naive):
    """:class:`MaskedBatchNorm2d` of the real and of the imaginary part.

    Their correlation stays. Arguments are those of :class:`MaskedBatchNorm2d`.
    """

    part = MaskedBatchNorm2d
