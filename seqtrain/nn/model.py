"""An encoder, a pooling and a head. Tensors in, tensors out."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from seqtrain.nn.layout import padded_layout


class SequenceModel(nn.Module):
    """Predicts from right-padded tokens; what lies in the padding never matters.

    Args:
        encoder: ``(tokens, layout) -> (B, L, C)``.
        pooling: ``(hidden, mask) -> (B, D)``; None for residue tasks, which keep every residue.
        head: Logits, and their ``readout``.
    """

    def __init__(self, encoder: nn.Module, pooling: nn.Module | None, head: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.head = head

    def forward(
        self, tokens: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B ..."]:
        """Logits: ``(B, K)``, ``(B,)`` for a regression, ``(B, L, K)`` for residue tasks."""
        layout = padded_layout(lengths, tokens.shape[1])
        hidden = self.encoder(tokens, layout)
        logits: Tensor = self.head(
            hidden if self.pooling is None else self.pooling(hidden, layout.mask)
        )
        return logits

    def embed(
        self, tokens: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L C"]:
        """Hidden states of the last block, exact zeros at padding."""
        hidden: Tensor = self.encoder(tokens, padded_layout(lengths, tokens.shape[1]))
        return hidden
