"""Records that a model is scored on and was trained on: how many, and the score without them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from seqtrain.data.dataset import SequenceDataset
from seqtrain.training.metrics import primary_metric
from seqtrain.training.outputs import Outputs, score_outputs


class Copies(NamedTuple):
    """Exact copies of training records among those that are scored."""

    records: int
    """Their number, or a lower bound of it."""
    is_sample: bool
    """True if only a part of the training records is known."""
    metrics_without: dict[str, float]
    """The metrics of the other records; empty where there are none, or no copies."""

    def sentence(self, total: int, metrics: Mapping[str, Any], task: str) -> str | None:
        """A warning for the user; None without copies.

        Args:
            total: Records that are scored.
            metrics: Of all of them, as ``Evaluation`` has them.
            task: What is predicted.
        """
        if not self.records:
            return None
        number = f"{'at least ' * self.is_sample}{self.records:,} of {total:,}"
        said = f"{number} records are exact copies of records that the model was trained on"
        name = primary_metric(task)
        if not self.metrics_without:
            return f"{said}: the score says nothing of new records"
        if name not in self.metrics_without:
            return said
        value, without = metrics[name].value, self.metrics_without[name]
        return f"{said}: {name} is {value:.3g} with and {without:.3g} without them"


def find_copies(
    is_copy: Bool[np.ndarray, " N"],
    is_sample: bool,
    outputs: Outputs,
    dataset: SequenceDataset,
    task: str,
    num_classes: int,
) -> Copies:
    """Count the copies, and score the other records.

    Args:
        is_copy: Whether each record is known to be one.
        is_sample: Whether only a part of the training records is known.
        outputs: What the model says of ``dataset``.
        dataset: Labelled records.
        task: What is predicted.
        num_classes: Of the task; 1 without classes.
    """
    metrics: dict[str, float] = {}
    others = np.flatnonzero(~is_copy)
    if is_copy.any() and len(others):
        where = dataset.positions(others) if dataset.per_residue else others
        rest = Outputs(outputs.values[where], float("nan"))
        metrics = score_outputs(rest, dataset.subset(others), task, num_classes)
        metrics.pop("loss", None)
    return Copies(int(is_copy.sum()), is_sample, metrics)
