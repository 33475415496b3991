"""The repeated parts of the encoders. Hidden states are ``(B, L, C)``, contiguous.

A packed batch is ``(1, R, C)``; the layout says which form it is.

A norm is called as ``norm(x, mask)`` and decides what it leaves at padded positions: every one
but the leaky batch norm leaves exact zeros.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqtrain.nn.layout import Grid, Layout, with_gaps
from seqtrain.nn.norms import MaskedGroupNorm, MaskedInstanceNorm1d, MaskedLayerNorm

NormFactory = Callable[[int], nn.Module]
"""Makes the norm of so many channels."""


class ChannelsLastConv1d(nn.Conv1d):
    """``nn.Conv1d`` over ``(B, L, C)``: same parameters, same padding with zeros.

    It runs as a two-dimensional convolution of height one on channels-last memory, which the CPU
    and GPU libraries have their fastest kernels for; no transposed copy is made.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, padding="same", dilation=dilation)

        self.reach = (kernel_size - 1) // 2 * dilation

    def forward(  # type: ignore[override]  # the layout says where sequences end
        self, input: Float[Tensor, "B L C"], layout: Layout
    ) -> Float[Tensor, "B L D"]:
        """Convolved states, as long as the input; sequences do not see each other."""
        if layout.sequences is None:
            return self._convolve(input)
        return with_gaps(input, layout, self.reach, self._convolve)

    def _convolve(self, input: Tensor) -> Tensor:
        weight = self.weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        image = input.transpose(1, 2).unsqueeze(2)
        out = F.conv2d(image, weight, None, padding=(0, self.reach), dilation=(1, self.dilation[0]))
        # Added here because the library's own gradient of a bias takes as long as that of the
        # input: 4.1 of 11.8 ms at (32, 160, 96), k = 7, one thread.
        assert self.bias is not None
        return out.squeeze(2).transpose(1, 2).contiguous() + self.bias


def normalize(norm: nn.Module, x: Tensor, layout: Layout) -> Tensor:
    """``norm`` of real positions; those that take statistics of each sequence see it alone.

    Args:
        norm: Called as ``norm(x, mask)`` on a padded batch.
        x: ``(B, L, C)``, or ``(1, R, C)`` packed.
        layout: Says which.
    """
    by_sequence = isinstance(norm, MaskedInstanceNorm1d | MaskedGroupNorm) or (
        isinstance(norm, MaskedLayerNorm) and norm.over == "sequence"
    )
    if layout.grids is None or not by_sequence:
        mask = layout.mask
        if mask is None and x.shape[1] == 1:
            # Without a mask torch's own batch norm runs, which refuses a single residue.
            mask = x.new_ones(x.shape[:2], dtype=torch.bool)
        out: Tensor = norm(x, mask)
        return out
    alone = [grid.unpad(norm(grid.pad(x), grid.mask)) for grid in layout.grids]
    return torch.cat(alone, dim=1)


class ChannelDropout(nn.Module):
    """Drops whole channels of a sequence while training (Tompson et al. 2015, arXiv:1411.4280).

    One draw per sequence and channel: what is dropped does not depend on how far the sequence is
    padded, neighbouring residues cannot fill in for each other, and it costs next to nothing.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Float[Tensor, "B L C"], layout: Layout) -> Float[Tensor, "B L C"]:
        """``x`` with dropped channels at zero and the others scaled up to keep the mean."""
        if not self.training or self.p == 0:
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
        update: Tensor = self.dropout(
            F.relu(normalize(self.norm, self.conv(x, layout), layout)), layout
        )
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
        """Cosines and sines, float32, ``(1 or B, 1, L, head_dim / 2)``."""
        angle = positions[..., None].float() * self.frequencies.float()
        angle = angle.unsqueeze(-3) if angle.dim() == 3 else angle[None, None]
        return angle.cos(), angle.sin()

    @staticmethod
    def turn(
        x: Float[Tensor, "B H L D"], angles: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "B H L D"]:
        """``x`` turned, in its own dtype."""
        cos, sin = (a.to(x.dtype) for a in angles)
        left, right = x.chunk(2, dim=-1)
        return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


class SelfAttention(nn.Module):
    """Multi-head attention among the real residues of each sequence."""

    def __init__(self, embed_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.rotary = RotaryPositions(embed_dim // num_heads)
        self.in_proj = nn.Linear(embed_dim, 3 * embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Float[Tensor, "B L C"], layout: Layout) -> Float[Tensor, "B L C"]:
        """What each residue gathers from its sequence."""
        B, L, C = x.shape
        heads = self.in_proj(x).view(B, L, 3, self.num_heads, C // self.num_heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        angles = self.rotary.angles(layout.positions)
        q, k = self.rotary.turn(q, angles), self.rotary.turn(k, angles)
        gathered = _attend(q, k, v, layout)
        out: Tensor = self.out_proj(gathered.transpose(1, 2).reshape(B, L, C))
        return out


def _attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    if layout.spans is not None:
        return _attend_each(q, k, v, layout)
    if layout.grids is None:
        assert layout.mask is not None, "a padded batch has a mask"
        return _attend_masked(q, k, v, layout.mask)
    return torch.cat([_attend_in(grid, q, k, v) for grid in layout.grids], dim=2)


def _attend_in(grid: Grid, *heads: Tensor) -> Tensor:
    """The sequences of one grid of a packed batch: ``(1, H, R, D)`` in, theirs alone out."""
    num_heads = heads[0].shape[1]

    def opened(x: Tensor) -> Tensor:
        rows = grid.pad(x.transpose(1, 2).flatten(2))
        return rows.view(*rows.shape[:2], num_heads, -1).transpose(1, 2)

    q, k, v = map(opened, heads)
    gathered = grid.unpad(_attend_masked(q, k, v, grid.mask).transpose(1, 2).flatten(2))
    return gathered.view(*gathered.shape[:2], num_heads, -1).transpose(1, 2)


def _attend_masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """All sequences at once; padded keys are masked out."""
    # nn.MultiheadAttention's key_padding_mask means the opposite; this one is True = attend.
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])


def _attend_each(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """One sequence after the other: no work on padding, no mask to read. Faster on a CPU."""
    assert layout.spans is not None
    out = torch.zeros_like(q)
    for row, start, length in layout.spans:
        at = (slice(row, row + 1), slice(None), slice(start, start + length))
        out[at] = F.scaled_dot_product_attention(q[at], k[at], v[at])
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
        self.ffn = nn.Sequential(
            nn.Linear(embed_dim, ffn_dim), nn.GELU(), nn.Linear(ffn_dim, embed_dim)
        )
        self.dropout = ChannelDropout(dropout)

    def forward(self, x: Float[Tensor, "B L C"], layout: Layout) -> Float[Tensor, "B L C"]:
        """The states after this block."""
        x = x + self.dropout(
            self.attention(normalize(self.attention_norm, x, layout), layout), layout
        )
        update: Tensor = self.dropout(self.ffn(normalize(self.ffn_norm, x, layout)), layout)
        return x + update
