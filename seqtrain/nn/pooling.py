"""From hidden states to one vector per sequence, padding left out."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seqtrain.masking import masked_max, masked_mean, masked_softmax, zero_padding
from seqtrain.nn.layout import Layout
from seqtrain.nn.norms import MaskedBatchNorm1d


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


class PositionPooling(Pooling):
    """A sum over residues in which every position has weights of its own.

    For families of variants, where a place in the protein means something: one changed residue
    among hundreds moves a mean by next to nothing, but it moves the weights of its own position in
    full. With values v of the hidden states, z_k = sum over l of P[l, k] v_k(h_l) is a linear model
    on one-hot positions whose weights have rank K, so that what one substitution teaches serves
    the others at its position. A batch norm over the records of the batch scales up what differs
    between them; beside its output stands a nonlinear layer of it, for effects that do not add.

    Args:
        embed_dim: Channels of the hidden states.
        num_positions: Residues from the start that have weights; later ones count as nothing.
        rank: K, features in the sum.
    """

    def __init__(self, embed_dim: int, num_positions: int, rank: int = 64):
        super().__init__()
        self.out_dim = 2 * rank
        self.value = nn.Linear(embed_dim, rank)
        self.weight = nn.Parameter(torch.randn(num_positions, rank) * 0.02)
        self.norm = MaskedBatchNorm1d(rank)
        self.interactions = nn.Linear(rank, rank)

    def forward(self, x: Float[Tensor, "B L C"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        """One vector of ``2 K`` values per sequence."""
        return self._features(self._sums(x, mask))

    def packed(self, x: Float[Tensor, "1 R C"], layout: Layout) -> Float[Tensor, "S D"]:
        """The same of packed states; the norm sees all sequences of the batch at once."""
        grids = layout.in_grids(x)
        sums = [self._sums(grid.pad(rows), grid.mask) for grid, rows in grids]
        return self._features(torch.cat(sums))

    def _sums(self, x: Tensor, mask: Tensor) -> Tensor:
        """Weighted sums ``(B, K)`` over real residues, counted from the first one of each row."""
        position = mask.cumsum(dim=1) - 1
        counted = mask & (position < len(self.weight))
        weight = self.weight[position.clamp(0, len(self.weight) - 1)]
        terms = self.value(zero_padding(x, mask)) * weight
        return zero_padding(terms, counted).sum(dim=1)

    def _features(self, sums: Tensor) -> Tensor:
        everyone = torch.ones(len(sums), dtype=torch.bool, device=sums.device)
        z = self.norm(sums, everyone)  # with a mask, a batch of one record is no error
        return torch.cat([z, self.interactions(z).relu()], dim=1)
