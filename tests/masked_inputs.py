"""What hypothesis draws for masked modules: shapes, masks of every kind, and seeds."""

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

KINDS = ("right", "left", "interior", "none real", "all real", "ragged")


class MaskedInput(NamedTuple):
    x: Tensor
    """``(B, L, C)`` in float64, with NaN and ±Inf at padding."""
    mask: Tensor
    """``(B, L)``."""
    grad: Tensor
    """An upstream gradient like ``x``, with NaN and ±Inf at padding."""

    @property
    def clean(self) -> Tensor:
        """``x`` with zeros at padding."""
        return self.x.masked_fill(~self.mask[..., None], 0)


def make_mask(kind: str, batch: int, length: int, generator: torch.Generator) -> Tensor:
    """A mask ``(B, L)``, True where real."""
    at = torch.arange(length)
    lengths = torch.randint(0, length + 1, (batch, 1), generator=generator)
    match kind:
        case "right":
            return at < lengths
        case "left":
            return at >= length - lengths
        case "interior":
            start = torch.randint(0, length + 1, (batch, 1), generator=generator)
            return (at < start) | (at >= (start + lengths).clamp(max=length))
        case "none real":
            return torch.zeros(batch, length, dtype=torch.bool)
        case "all real":
            return torch.ones(batch, length, dtype=torch.bool)
    return torch.rand(batch, length, generator=generator) < 0.6


def poisoned(x: Tensor, mask: Tensor) -> Tensor:
    """``x`` with NaN, Inf and -Inf in turn wherever ``mask`` is False."""
    poison = x.new_tensor([torch.nan, torch.inf, -torch.inf])
    turns = poison[torch.arange(x.numel(), device=x.device) % 3].view(x.shape)
    return torch.where(mask, x, turns)


@st.composite
def masked_inputs(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS) -> MaskedInput:
    """Small masked inputs of any kind of padding."""
    batch = draw(st.integers(1, 4))
    length = draw(st.integers(1, 6))
    channels = draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    mask = make_mask(draw(st.sampled_from(kinds)), batch, length, generator)
    shape = (batch, length, channels)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 3
    grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    return MaskedInput(poisoned(x, mask[..., None]), mask, poisoned(grad, mask[..., None]))
