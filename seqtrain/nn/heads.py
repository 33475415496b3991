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

    Args:
        in_dim: Channels of the input.
        dropout: Before the linear layer.
        mean: Mean of the training targets.
        std: Their standard deviation.
        wide: Scale and read out in float64, for targets whose mean is so large beside their
            spread that float32 would lose it.
    """

    target_mean: Tensor
    target_std: Tensor

    def __init__(
        self, in_dim: int, dropout: float, mean: float = 0.0, std: float = 1.0, wide: bool = False
    ):
        super().__init__()
        self.mean, self.std, self.wide = mean, std, wide
        self.dropout = nn.Dropout(dropout)
        self.linear = _neutral_linear(in_dim, 1)
        self.register_buffer("target_mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("target_std", torch.tensor(std, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Scaled predictions ``(B,)`` or ``(B, L)``."""
        logits: Tensor = self.linear(self.dropout(x))
        return logits.squeeze(-1)

    def scale(self, targets: Tensor) -> Tensor:
        """Targets in the unit that the logits are in, float32."""
        if self.wide:
            return ((targets.double() - self.mean) / self.std).float()
        return (targets.float() - self.target_mean) / self.target_std

    def readout(self, logits: Tensor) -> Tensor:
        """Predictions in the target's unit, float32, or float64 if wide."""
        if self.wide:
            # The GPUs of Apple have no float64.
            at_hand = logits.cpu() if logits.device.type == "mps" else logits
            return at_hand.double() * self.std + self.mean
        return logits.float() * self.target_std + self.target_mean
