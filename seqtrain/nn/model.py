"""An encoder, a pooling and a head. Tensors in, tensors out."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from seqtrain.nn.layout import Layout, packed_layout, padded_layout
from seqtrain.nn.pooling import Pooling


class SequenceModel(nn.Module):
    """Predicts from padded or packed tokens; what lies in the padding never matters.

    Args:
        encoder: ``(tokens, layout) -> (B, L, C)``.
        pooling: ``(hidden, mask) -> (B, D)``; None for residue tasks, which keep every residue.
        head: Logits, and their ``readout``.
    """

    def __init__(self, encoder: nn.Module, pooling: Pooling | None, head: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.head = head

    def forward(
        self, tokens: Int[Tensor, "B L"], lengths: Int[Tensor, " S"], packed: bool = False
    ) -> Float[Tensor, "..."]:
        """Logits: ``(S, K)``, ``(S,)`` for a regression, ``(B, L, K)`` for residue tasks.

        Args:
            tokens: One sequence a row, padded behind; packed: one row, all sequences end to end.
            lengths: Residues of each sequence. Left on the host, nothing waits for a GPU.
            packed: Which form it is.

        Raises:
            ValueError: There is no residue at all.
        """
        layout = _layout(tokens, lengths, packed)
        hidden = self.encoder(tokens, layout)
        logits: Tensor = self.head(hidden if self.pooling is None else self._pool(hidden, layout))
        return logits

    def _pool(self, hidden: Tensor, layout: Layout) -> Tensor:
        assert self.pooling is not None
        if layout.grids is not None:
            return self.pooling.packed(hidden, layout)
        pooled: Tensor = self.pooling(hidden, layout.mask)
        return pooled


def _layout(tokens: Tensor, lengths: Tensor, packed: bool) -> Layout:
    if tokens.numel() == 0:
        raise ValueError(
            f"expected tokens of at least one residue, found none in shape {tuple(tokens.shape)}"
        )
    if packed:
        return packed_layout(lengths, tokens.device)
    return padded_layout(lengths, tokens.shape[1], tokens.device)
