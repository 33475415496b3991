"""Count, mean and squared deviations of real positions: taken, merged, and pooled over ranks."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor

from seqtrain.nn.norms.masks import select_real


class Moments(NamedTuple):
    """Statistics of real positions; every reduced dimension is kept with size 1."""

    n: Tensor
    """Number of real positions: int64, or float once pooled over ranks."""
    mean: Tensor
    """Mean, 0 where nothing is real; float32 or wider."""
    m2: Tensor
    """Sum of squared deviations from the mean; float32 or wider."""

    def variance(self, correction: int = 0) -> Tensor:
        """``m2 / (n - correction)``, with a divisor of at least 1."""
        return self.m2 / (self.n - correction).clamp(min=1)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that statistics of ``dtype`` are kept in: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)


def sum_along(values: Tensor, dims: Sequence[int]) -> Tensor:
    """The sums along ``dims``, kept with size 1; of no dimension, the values themselves.

    torch takes an empty list for all dimensions.
    """
    return values.sum(tuple(dims), keepdim=True) if dims else values


def count_real(input: Tensor, mask: Tensor | None, dims: Sequence[int]) -> Tensor:
    """Number of real positions along ``dims``, int64, where a size of 1 in the mask stands for all.

    It stays of size 1 where the mask is, so it is one number for channels that share a mask.
    """
    if mask is None:
        mask = torch.ones([1] * input.ndim, dtype=torch.bool, device=input.device)
    counted = [input.shape[d] if d in dims else mask.shape[d] for d in range(input.ndim)]
    return sum_along(mask.expand(counted).long(), dims)


def masked_moments(
    input: Float[Tensor, "..."], mask: Bool[Tensor, "..."] | None, dims: Sequence[int]
) -> Moments:
    """Count, mean and sum of squared deviations of the real positions, over ``dims``.

    Two passes, the second corrected by the rounding error of the first (Chan, Golub and LeVeque
    1983). E[x²] − μ² would cancel: at a mean of 1e4 in float32 it can come out negative.

    Args:
        input: Features; sums are taken in float32 or wider.
        mask: True where real; of the input's rank, every dimension equal or 1. ``None`` for all.
        dims: Dimensions that the statistics are taken over.
    """
    dims = tuple(dim % input.ndim for dim in dims)
    n = count_real(input, mask, dims)
    divisor = n.clamp(min=1)
    wide = input.to(wide_dtype(input.dtype))
    first = select_real(wide, mask).sum(dims, keepdim=True) / divisor
    centred = select_real(wide - first, mask)
    error = centred.sum(dims, keepdim=True) / divisor
    m2 = (centred * centred).sum(dims, keepdim=True) - n * error * error
    return Moments(n, first + error, m2.clamp(min=0))


def merge_moments(parts: Moments) -> Moments:
    """One set of moments from several, stacked along a leading dimension (Chan et al. 1983)."""
    n = parts.n.sum(0)
    first = (parts.n * parts.mean).sum(0) / n.clamp(min=1)
    # Corrected like the mean of the positions: large means round by more than they differ.
    mean = first + (parts.n * (parts.mean - first)).sum(0) / n.clamp(min=1)
    between = parts.n * (parts.mean - mean).square()
    return Moments(n, mean, (parts.m2 + between).sum(0))


def pool_moments(moments: Moments, group: dist.ProcessGroup) -> Moments:
    """The moments of all real positions on all ranks; a rank may have none."""
    n, mean, m2 = moments
    packed = torch.stack([n.expand_as(mean).to(mean.dtype), mean, m2])
    gathered = [torch.empty_like(packed) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, packed, group=group)
    return merge_moments(Moments(*torch.stack(gathered, dim=1)))


def sum_over_ranks(*parts: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, ...]:
    """Each of some equally shaped tensors summed over the ranks, in one exchange."""
    packed = torch.stack(parts)
    dist.all_reduce(packed, group=group)
    return packed.unbind()
