"""The loss of a batch, bound to a task and its weights."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import tiny_model
from tiny_training import IGNORED, tiny_dataset

from seqtrain.data.batching import Batch, collate
from seqtrain.nn.model import SequenceModel
from seqtrain.training.objective import Objective


def batch_of(task: str, packed: bool = False) -> Batch:
    dataset = tiny_dataset(task, lengths=[5, 12, 3])
    return collate(dataset, torch.arange(3).numpy(), packed=packed)


def logits_of(model: SequenceModel, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(batch.tokens, batch.lengths, batch.packed)
    return logits


def test_classes_are_scored_by_weighted_and_smoothed_cross_entropy() -> None:
    batch, model = batch_of("classification"), tiny_model()
    weights = torch.tensor([0.5, 1.0, 4.0])
    logits = logits_of(model, batch)
    total, count = Objective("classification", weights, 0.2)(model, batch, logits)
    wanted = F.cross_entropy(logits, batch.targets, weights, label_smoothing=0.2)
    torch.testing.assert_close(total / count, wanted)


@pytest.mark.parametrize("packed", [True, False])
def test_residues_are_scored_without_padding_and_ignored_ones(packed: bool) -> None:
    task = "residue_classification"
    batch, model = batch_of(task, packed), tiny_model(task=task)
    assert batch.targets is not None
    logits = logits_of(model, batch)
    total, count = Objective(task)(model, batch, logits)
    counted = batch.targets != IGNORED
    assert count == counted.sum() > 0
    wanted = F.cross_entropy(logits[counted], batch.targets[counted], reduction="sum")
    torch.testing.assert_close(total, wanted)


@pytest.mark.parametrize("kind", ["mse", "huber"])
def test_a_regression_is_scored_in_standard_deviations_of_the_target(kind: str) -> None:
    batch, model = batch_of("regression"), tiny_model(task="regression")
    assert batch.targets is not None
    logits = logits_of(model, batch)
    total, count = Objective("regression", regression_loss=kind)(model, batch, logits)
    scaled = (batch.targets - 3.0) / 2.0  # the codec's mean and deviation
    function = {"mse": F.mse_loss, "huber": F.huber_loss}[kind]
    torch.testing.assert_close(total / count, function(logits, scaled.float()))


def test_the_plain_objective_drops_weights_and_smoothing_but_keeps_the_loss() -> None:
    objective = Objective("regression", torch.ones(3), 0.5, "huber")
    assert objective.plain() == Objective("regression", regression_loss="huber")


def test_half_logits_are_scored_in_float32() -> None:
    batch, model = batch_of("classification"), tiny_model()
    logits = logits_of(model, batch).to(torch.bfloat16)
    total, count = Objective("classification")(model, batch, logits)
    assert total.dtype == count.dtype == torch.float32
    torch.testing.assert_close(
        total, F.cross_entropy(logits.float(), batch.targets, reduction="sum")
    )


def test_class_weights_move_with_the_objective() -> None:
    moved = Objective("classification", torch.ones(3)).to(torch.device("meta"))
    assert moved.class_weights is not None
    assert moved.class_weights.device.type == "meta"
    assert Objective("classification").to(torch.device("meta")).class_weights is None
