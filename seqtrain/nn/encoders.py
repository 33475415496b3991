"""From tokens to hidden states, ``(B, L, C)``, zero at padding."""

from collections.abc import Iterator
from itertools import cycle, islice

from jaxtyping import Float, Int
from torch import Tensor, nn

from seqtrain.data.tokenizer import PAD
from seqtrain.masking import zero_padding
from seqtrain.nn.blocks import (
    ChannelDropout,
    ConvBlock,
    NormFactory,
    TransformerBlock,
    normalize,
)
from seqtrain.nn.layout import Layout


class Encoder(nn.Module):
    """An embedding and a stack of blocks; what every encoder shares."""

    def __init__(
        self, vocab_size: int, embed_dim: int, dropout: float, blocks: Iterator[nn.Module]
    ):
        super().__init__()
        self.embed_dim = embed_dim
        self.embedding = nn.Embedding(vocab_size, embed_dim, padding_idx=PAD)
        self.dropout = ChannelDropout(dropout)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, tokens: Int[Tensor, "B L"], layout: Layout) -> Float[Tensor, "B L C"]:
        """Hidden states of real residues, exact zeros at padding."""
        states = zero_padding(self.embedding(tokens), layout.mask)
        return zero_padding(self.through_blocks(states, layout), layout.mask)

    def through_blocks(self, states: Tensor, layout: Layout) -> Tensor:
        """Embedded states after dropout and all blocks, in the form that the layout says."""
        states = self.dropout(states, layout)
        for block in self.blocks:
            states = block(states, layout)
        return states


class CnnEncoder(Encoder):
    """Residual dilated convolutions; time and memory grow with the number of residues."""

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_layers: int,
        kernel_size: int,
        max_dilation: int,
        dropout: float,
        norm: NormFactory,
    ):
        dilations = islice(cycle(_powers_of_two(max_dilation)), num_layers)
        blocks = [ConvBlock(embed_dim, kernel_size, d, dropout, norm) for d in dilations]
        super().__init__(vocab_size, embed_dim, dropout, iter(blocks))
        self.reach = max((block.conv.reach for block in blocks), default=0)

    def forward(self, tokens: Int[Tensor, "B L"], layout: Layout) -> Float[Tensor, "B L C"]:
        """Hidden states of real residues, exact zeros at padding."""
        if layout.sequences is None:
            return super().forward(tokens, layout)
        # Opened once, for all blocks: each pass over the states costs a few hundredths of a step.
        opened = layout.with_gaps(self.reach)
        states = opened.open(self.embedding(tokens))
        return opened.close(self.through_blocks(states, opened))


class TransformerEncoder(Encoder):
    """Pre-norm attention with rotary positions; time grows with the square of the length."""

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        norm: NormFactory,
    ):
        blocks = (
            TransformerBlock(embed_dim, num_heads, ffn_dim, dropout, norm)
            for _ in range(num_layers)
        )
        super().__init__(vocab_size, embed_dim, dropout, blocks)
        self.norm = norm(embed_dim)

    def forward(self, tokens: Int[Tensor, "B L"], layout: Layout) -> Float[Tensor, "B L C"]:
        """Normalized hidden states of real residues, exact zeros at padding."""
        hidden = normalize(self.norm, super().forward(tokens, layout), layout)
        return zero_padding(hidden, layout.mask)


def _powers_of_two(largest: int) -> list[int]:
    return [2**i for i in range(largest.bit_length()) if 2**i <= largest]
