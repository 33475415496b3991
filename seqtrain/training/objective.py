"""The objective: a task's loss with its weights, bound once."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seqtrain.data.batching import Batch
from seqtrain.nn.heads import RegressionHead
from seqtrain.nn.model import SequenceModel
from seqtrain.training.losses import sequence_loss


@dataclass(frozen=True)
class Objective:
    """The loss of a batch as a sum and a count, so that batches add up exactly."""

    task: str
    class_weights: Tensor | None = None
    """Float ``(K,)``, on the model's device."""
    label_smoothing: float = 0.0
    regression_loss: str = "mse"

    def plain(self) -> "Objective":
        """The same loss without weights and smoothing: what evaluation reports."""
        return Objective(self.task, regression_loss=self.regression_loss)

    def to(self, device: torch.device) -> "Objective":
        """The same loss with its weights on ``device``."""
        weights = None if self.class_weights is None else self.class_weights.to(device)
        return replace(self, class_weights=weights)

    def __call__(self, model: SequenceModel, batch: Batch, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of losses and what they count for, float32 scalars."""
        assert batch.targets is not None
        targets = batch.targets
        if isinstance(model.head, RegressionHead):
            targets = model.head.scale(targets)
        return sequence_loss(
            self.task,
            logits.float(),
            targets,
            class_weights=self.class_weights,
            label_smoothing=self.label_smoothing,
            loss=self.regression_loss,
        )
