"""The repeated parts of the encoders. Hidden states are ``(B, L, C)``, contiguous.

A packed batch is ``(1, R, C)``, or ``(1, P, C)`` with gaps; the layout says which form it is.

A norm is called as ``norm(x, mask)`` and decides what it leaves at padded positions: every one
but the leaky batch norm leaves exact zeros.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqtrain.nn.attention import attend
from seqtrain.nn.layout import Layout
from seqtrain.nn.norms import (
    MaskedBatchNorm,
    MaskedGroupNorm,
    MaskedInstanceNorm1d,
    MaskedLayerNorm,
)
from seqtrain.nn.products import convolve, convolve_row, linear

NormFactory = Callable[[int], nn.Module]
"""Makes the norm of so many channels."""


class ChannelsLastConv1d(nn.Conv1d):
    """``nn.Conv1d`` over ``(B, L, C)``: same parameters, same padding with zeros."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, padding="same", dilation=dilation)
        self.reach = (kernel_size - 1) // 2 * dilation

    def forward(  # type: ignore[override]  # the layout says where sequences end
        self, input: Float[Tensor, "B L C"], layout: Layout
    ) -> Float[Tensor, "B L D"]:
        """Convolved states, as long as the input.

        Sequences do not see each other if what lies between them is zero and at least as wide as
        the convolution reaches.
        """
        weight = self.weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        assert self.bias is not None
        assert not layout.is_packed or layout.places is not None, "a packed row has gaps"
        form = convolve if layout.places is None else convolve_row
        return form(input, weight, self.bias, self.dilation[0], self.reach)


class Linear(nn.Linear):
    """``nn.Linear`` with a bias, by the library that is fastest."""

    def forward(self, input: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows D"]:
        """``input @ weight.T + bias``."""
        return linear(input, self.weight, self.bias)


def normalize(norm: nn.Module, x: Tensor, layout: Layout) -> Tensor:
    """``norm`` of real positions; those that take statistics of each sequence see it alone.

    Args:
        norm: Called as ``norm(x, mask)`` on a padded batch.
        x: ``(B, L, C)``, or packed ``(1, R, C)`` or with gaps ``(1, P, C)``.
        layout: Says which.
    """
    if layout.places is not None and not isinstance(norm, MaskedBatchNorm):
        # A gap is nobody's padding: a norm that counts padding must not count it.
        closed = layout._replace(mask=None, places=None)
        return layout.open(normalize(norm, layout.close(x), closed))
    by_sequence = isinstance(norm, MaskedInstanceNorm1d | MaskedGroupNorm) or (
        isinstance(norm, MaskedLayerNorm) and norm.over == "sequence"
    )
    if not (layout.is_packed and by_sequence):
        mask = layout.mask
        if mask is None and x.shape[1] == 1:
            # Without a mask torch's own batch norm runs, which refuses a single residue.
            mask = x.new_ones(x.shape[:2], dtype=torch.bool)
        out: Tensor = norm(x, mask)
        return out
    alone = [grid.unpad(norm(grid.pad(rows), grid.mask)) for grid, rows in layout.in_grids(x)]
    return torch.cat(alone)[None]


class ChannelDropout(nn.Module):
    """Drops whole channels of a sequence while training (Tompson et al. 2015, arXiv:1411.4280).

    One draw per sequence and channel: what is dropped does not depend on how far the sequence is
    padded, neighbouring residues cannot fill in for each other, and it costs next to nothing.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    @property
    def is_active(self) -> bool:
        """True if anything may be dropped."""
        return self.training and self.p > 0

    def forward(self, x: Float[Tensor, "B L C"], layout: Layout) -> Float[Tensor, "B L C"]:
        """``x`` with dropped channels at zero and the others scaled up to keep the mean."""
        if not self.is_active:
            return x
        kept = x.new_empty(layout.num_sequences, x.shape[2]).bernoulli_(1 - self.p).div_(1 - self.p)
        return x * (kept[:, None] if layout.sequences is None else kept[layout.sequences])


class ConvBlock(nn.Module):
    """``x + dropout(relu(norm(conv(x))))``: the norm follows the convolution, so it can be folded.

    After every norm but the leaky one padding is zero again, so that the next convolution sees
    beyond the end of a sequence what it would see there were the sequence alone.
    """

    def __init__(
        self, embed_dim: int, kernel_size: int, dilation: int, dropout: float, norm: NormFactory
    ):
        super().__init__()
        self.conv = ChannelsLastConv1d(embed_dim, embed_dim, kernel_size, dilation)
        self.norm = norm(embed_dim)
        self.dropout = ChannelDropout(dropout)

    def forward(self, x: Float[Tensor, "B L C"], layout: Layout) -> Float[Tensor, "B L C"]:
        """The states after this block."""
        states = self.conv(x, layout)
        if isinstance(self.norm, MaskedBatchNorm):
            # All in one pass over the states, where a kernel runs.
            whole = not self.dropout.is_active
            out: Tensor = self.norm(states, layout.mask, relu=True, residual=x if whole else None)
            return out if whole else x + self.dropout(out, layout)
        update: Tensor = self.dropout(F.relu(normalize(self.norm, states, layout)), layout)
        return x + update


class RotaryPositions(nn.Module):
    """Turns pairs of channels by an angle proportional to the position.

    RoFormer, Su et al. 2021, arXiv:2104.09864: the product of a query and a key then depends on
    their distance alone.
    """

    frequencies: Tensor

    def __init__(self, head_dim: int, base: float = 10_000.0):
        super().__init__()
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self.register_buffer("frequencies", base**-exponents, persistent=False)

    def angles(self, positions: Int[Tensor, "*grid"]) -> tuple[Tensor, Tensor]:
        """Cosines and sines, float32, ``(1 or B, L, 1, head_dim / 2)``."""
        angle = positions[..., None].float() * self.frequencies.float()
        angle = angle.view(-1, positions.shape[-1], 1, angle.shape[-1])
        return angle.cos(), angle.sin()

    @staticmethod
    def turn(
        x: Float[Tensor, "B L H D"], angles: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "B L H D"]:
        """``x`` turned, in its own dtype."""
        cos, sin = (a.to(x.dtype) for a in angles)
        if torch.compiler.is_compiling():
            left, right = x.chunk(2, dim=-1)
            return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
        out: Tensor = _Turn.apply(x, cos, sin)  # type: ignore[no-untyped-call]
        return out


class _Turn(torch.autograd.Function):
    """Pairs of channels turned, written in place: half the passes of the formula, both ways."""

    @staticmethod
    def forward(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        out = x.new_empty(x.shape)
        (left, right), (a, b) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
        torch.mul(left, cos, out=a).addcmul_(right, sin, value=-1)
        torch.mul(right, cos, out=b).addcmul_(left, sin)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        out: Tensor = _Turn.apply(grad, cos, -sin)  # type: ignore[no-untyped-call]
        return out, None, None


class SelfAttention(nn.Module):
    """Multi-head attention among the real residues of each sequence."""

    def __init__(self, embed_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.rotary = RotaryPositions(embed_dim // num_heads)
        self.in_proj = Linear(embed_dim, 3 * embed_dim)
        self.out_proj = Linear(embed_dim, embed_dim)

    def forward(self, x: Float[Tensor, "B L C"], layout: Layout) -> Float[Tensor, "B L C"]:
        """What each residue gathers from its sequence."""
        heads = self.in_proj(x).unflatten(2, (3 * self.num_heads, -1))
        q_and_k, v = heads.split([2 * self.num_heads, self.num_heads], dim=2)
        q, k = self.rotary.turn(q_and_k, self.rotary.angles(layout.positions)).chunk(2, dim=2)
        out: Tensor = self.out_proj(attend(q, k, v, layout).flatten(2))
        return out


class TransformerBlock(nn.Module):
    """Pre-norm attention and feed-forward, each added to what came in."""

    def __init__(
        self, embed_dim: int, num_heads: int, ffn_dim: int, dropout: float, norm: NormFactory
    ):
        super().__init__()
        self.attention_norm = norm(embed_dim)
        self.attention = SelfAttention(embed_dim, num_heads)
        self.ffn_norm = norm(embed_dim)
        self.ffn = nn.Sequential(Linear(embed_dim, ffn_dim), nn.GELU(), Linear(ffn_dim, embed_dim))
        self.dropout = ChannelDropout(dropout)

    def forward(self, x: Float[Tensor, "B L C"], layout: Layout) -> Float[Tensor, "B L C"]:
        """The states after this block."""
        x = x + self.dropout(
            self.attention(normalize(self.attention_norm, x, layout), layout), layout
        )
        update: Tensor = self.dropout(self.ffn(normalize(self.ffn_norm, x, layout)), layout)
        return x + update
