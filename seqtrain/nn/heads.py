"""From pooled vectors or hidden states to logits, and from logits to what a user reads."""

import torch
from torch import Tensor, nn


def _neutral_linear(in_dim: int, out_dim: int) -> nn.Linear:
    """A layer that begins by saying nothing: every class alike, the mean target.

    Maxima over residues are large before anything is learnt; through random weights they would
    begin as confident, wrong logits.
    """
    linear = nn.Linear(in_dim, out_dim)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class ClassHead(nn.Module):
    """One logit per class; the classes exclude each other. Serves sequences and residues."""

    temperature: Tensor

    def __init__(self, in_dim: int, num_classes: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = _neutral_linear(in_dim, num_classes)
        # Not among the weights: it is fitted to them once they are trained, and kept beside them.
        self.register_buffer("temperature", torch.ones(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(..., num_classes)``."""
        logits: Tensor = self.linear(self.dropout(x))
        return logits

    def readout(self, logits: Tensor) -> Tensor:
        """Probabilities in float32, summing to one over the classes."""
        return (logits.float() / self.temperature).softmax(dim=-1)


class MultilabelHead(ClassHead):
    """One logit per class; any number of classes can hold at once."""

    def readout(self, logits: Tensor) -> Tensor:
        """Probabilities in float32, each on its own."""
        return (logits.float() / self.temperature).sigmoid()


class RegressionHead(nn.Module):
    """One number per sequence or residue. It learns the scaled target and keeps the scale.

    The logits ``(B,)`` or ``(B, L)`` are in standard deviations of the training targets from their
    mean; :meth:`readout` gives the target's own unit.
    """

    target_mean: Tensor
    target_std: Tensor

    def __init__(self, in_dim: int, dropout: float, mean: float = 0.0, std: float = 1.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = _neutral_linear(in_dim, 1)
        self.register_buffer("target_mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("target_std", torch.tensor(std, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Scaled predictions ``(B,)`` or ``(B, L)``."""
        logits: Tensor = self.linear(self.dropout(x))
        return logits.squeeze(-1)

    def scale(self, targets: Tensor) -> Tensor:
        """Targets in the unit that the logits are in."""
        return (targets - self.target_mean) / self.target_std

    def readout(self, logits: Tensor) -> Tensor:
        """Predictions in the target's unit, float32."""
        return logits.float() * self.target_std + self.target_mean
