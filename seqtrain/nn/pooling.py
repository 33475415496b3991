"""From hidden states to one vector per sequence, padding left out."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seqtrain.masking import masked_max, masked_mean, masked_softmax, zero_padding


class MeanPooling(nn.Module):
    """The mean over real residues."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.out_dim = embed_dim

    def forward(self, x: Float[Tensor, "B L C"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B C"]:
        """One vector per sequence."""
        return masked_mean(x, mask)


class MaxPooling(nn.Module):
    """The largest value over real residues."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.out_dim = embed_dim

    def forward(self, x: Float[Tensor, "B L C"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B C"]:
        """One vector per sequence."""
        return masked_max(x, mask)


class MeanMaxPooling(nn.Module):
    """Mean and maximum side by side: how much of a feature there is, and whether there is any."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.out_dim = 2 * embed_dim

    def forward(self, x: Float[Tensor, "B L C"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        """One vector of ``2 C`` values per sequence."""
        return torch.cat([masked_mean(x, mask), masked_max(x, mask)], dim=1)


class AttentionPooling(nn.Module):
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
