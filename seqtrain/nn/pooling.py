"""From hidden states to one vector per sequence, padding left out."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seqtrain.masking import masked_max, masked_mean, masked_softmax, zero_padding
from seqtrain.nn.layout import Layout


class Pooling(nn.Module):
    """``(hidden, mask) -> (B, D)``; what is packed is opened into grids, each pooled as padded."""

    out_dim: int

    def packed(self, x: Float[Tensor, "1 R C"], layout: Layout) -> Float[Tensor, "S D"]:
        """The same of packed states."""
        grids = layout.in_grids(x)
        return torch.cat([self(grid.pad(rows), grid.mask) for grid, rows in grids])


class _PackedMean(torch.autograd.Function):
    """The mean of each sequence, whose gradient need not go back through the grids."""

    @staticmethod
    def forward(x: Tensor, layout: Layout) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        sums = [grid.pad(rows).sum(dim=1, dtype=wide) for grid, rows in layout.in_grids(x)]
        return (torch.cat(sums) / _counts(layout)).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.layout = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        wide = torch.promote_types(grad.dtype, torch.float32)
        each = (grad.to(wide) / _counts(ctx.layout)).to(grad.dtype)
        return each.index_select(0, ctx.layout.sequences)[None], None


def _counts(layout: Layout) -> Tensor:
    """Residues of each sequence, ``(S, 1)``."""
    assert layout.ends is not None, "only a packed batch has sequences side by side"
    return torch.diff(layout.ends, prepend=layout.ends.new_zeros(1)).clamp(min=1)[:, None]


def packed_mean(x: Float[Tensor, "1 R C"], layout: Layout) -> Float[Tensor, "S C"]:
    """The mean over the residues of each sequence of a packed batch."""
    out: Tensor = _PackedMean.apply(x, layout)  # type: ignore[no-untyped-call]
    return out


class MeanPooling(Pooling):
    """The mean over real residues."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.out_dim = embed_dim

    def forward(self, x: Float[Tensor, "B L C"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B C"]:
        """One vector per sequence."""
        return masked_mean(x, mask)

    def packed(self, x: Float[Tensor, "1 R C"], layout: Layout) -> Float[Tensor, "S C"]:
        """The same of packed states."""
        return packed_mean(x, layout)


class MaxPooling(Pooling):
    """The largest value over real residues."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.out_dim = embed_dim

    def forward(self, x: Float[Tensor, "B L C"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B C"]:
        """One vector per sequence."""
        return masked_max(x, mask)


class MeanMaxPooling(Pooling):
    """Mean and maximum side by side: how much of a feature there is, and whether there is any."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.out_dim = 2 * embed_dim

    def forward(self, x: Float[Tensor, "B L C"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        """One vector of ``2 C`` values per sequence."""
        return torch.cat([masked_mean(x, mask), masked_max(x, mask)], dim=1)

    def packed(self, x: Float[Tensor, "1 R C"], layout: Layout) -> Float[Tensor, "S D"]:
        """The same of packed states."""
        grids = layout.in_grids(x)
        highest = [masked_max(grid.pad(rows), grid.mask) for grid, rows in grids]
        return torch.cat([packed_mean(x, layout), torch.cat(highest)], dim=1)


class AttentionPooling(Pooling):
    """A mean weighted by a learnt score of each residue.

    Structured self-attention, Lin et al. 2017, arXiv:1703.03130, with one head.
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        self.out_dim = embed_dim
        self.score = nn.Linear(embed_dim, 1)

    def forward(self, x: Float[Tensor, "B L C"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B C"]:
        """One vector per sequence."""
        x = zero_padding(x, mask)
        weights = masked_softmax(self.score(x).squeeze(-1), mask)
        return torch.einsum("bl,blc->bc", weights.to(x.dtype), x)
