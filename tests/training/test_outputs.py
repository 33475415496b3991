"""Outputs of a whole data set: in its order, whatever the batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from tiny_models import tiny_model
from tiny_training import IGNORED, assert_same_weights, tiny_dataset, weights

from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.labels import is_residue
from seqtrain.nn.model import SequenceModel
from seqtrain.training.objective import Objective
from seqtrain.training.outputs import Outputs, predict_outputs, score_outputs

TASKS = [
    "classification",
    "multilabel",
    "regression",
    "residue_classification",
    "residue_regression",
    "mlm",
]


def one_by_one(model: SequenceModel, dataset: SequenceDataset, task: str) -> np.ndarray:
    """Readouts of each record alone, in order."""
    rows = []
    for i in range(len(dataset)):
        tokens = torch.from_numpy(dataset.residues(i).astype(np.int64))[None]
        with torch.no_grad():
            readout = model.head.readout(model(tokens, torch.tensor([tokens.shape[1]])))
        rows.append(readout[0] if is_residue(task) else readout)
    return torch.cat(rows).numpy()


@pytest.mark.parametrize("task", TASKS)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    max_tokens=st.sampled_from([1, 17, 60, 10_000]),
    packed=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=15)
def test_outputs_are_those_of_each_record_alone_in_input_order(
    task: str, lengths: list[int], max_tokens: int, packed: bool, seed: int
) -> None:
    model = tiny_model(task=task, seed=seed)
    dataset = tiny_dataset(task, seed=seed, lengths=lengths)
    found = predict_outputs(model, dataset, Objective(task), max_tokens=max_tokens, packed=packed)
    assert found.values.dtype == np.float32
    np.testing.assert_allclose(found.values, one_by_one(model, dataset, task), atol=2e-5)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("task", TASKS)
def test_the_loss_is_the_mean_over_records_or_counted_residues(task: str, packed: bool) -> None:
    model, dataset = tiny_model(task=task), tiny_dataset(task, 20)
    assert dataset.targets is not None
    found = predict_outputs(model, dataset, Objective(task), max_tokens=50, packed=packed)
    values, targets = found.values.astype(np.float64), dataset.targets
    if task.endswith("regression"):
        wanted = np.nanmean(((values - targets) / 2.0) ** 2)
    elif task == "multilabel":
        wanted = -np.mean(np.log(np.where(targets > 0.5, values, 1 - values)))
    else:
        counted = np.flatnonzero(targets >= 0)
        wanted = -np.mean(np.log(values[counted, targets[counted]]))
    assert found.loss == pytest.approx(wanted, rel=1e-4)


def test_without_targets_the_loss_is_not_a_number() -> None:
    labelled = tiny_dataset(num_records=5)
    dataset = SequenceDataset(labelled.ids, labelled.tokens, labelled.offsets)
    found = predict_outputs(tiny_model(), dataset, Objective("classification"), max_tokens=50)
    assert np.isnan(found.loss)
    assert found.values.shape == (5, 3)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    """In its mode, and with its running statistics untouched."""
    model = tiny_model().train(training)
    before = weights(model)
    first = predict_outputs(model, tiny_dataset(), Objective("classification"), max_tokens=50)
    again = predict_outputs(model, tiny_dataset(), Objective("classification"), max_tokens=50)
    assert model.training is training
    assert_same_weights(weights(model), before)
    np.testing.assert_array_equal(first.values, again.values)


def test_bfloat16_is_near_and_not_equal() -> None:
    model, dataset = tiny_model(), tiny_dataset()
    objective = Objective("classification")
    wide = predict_outputs(model, dataset, objective, max_tokens=99).values
    narrow = predict_outputs(
        model, dataset, objective, max_tokens=99, precision=torch.bfloat16
    ).values
    np.testing.assert_allclose(narrow, wide, atol=0.1)
    assert not np.array_equal(narrow, wide)


def test_the_loss_is_read_from_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "item", lambda _: pytest.fail("waits for the device"))
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(self) or tolist(self))
    model, dataset = tiny_model(), tiny_dataset(num_records=20)
    predict_outputs(model, dataset, Objective("classification"), max_tokens=50)
    assert len([read for read in reads if read.is_floating_point()]) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("task", TASKS)
def test_a_gpu_says_what_the_cpu_says(task: str, packed: bool) -> None:
    """Batches are made ahead there, in another thread and in page-locked memory."""
    model, dataset = tiny_model(task=task), tiny_dataset(task, 20)
    wanted = predict_outputs(model, dataset, Objective(task), max_tokens=50, packed=packed)
    model.to("cuda")
    found = predict_outputs(model, dataset, Objective(task), max_tokens=50, packed=packed)
    np.testing.assert_allclose(found.values, wanted.values, rtol=1e-3, atol=1e-4)
    assert found.loss == pytest.approx(wanted.loss, rel=1e-3)


def test_residues_are_scored_as_scikit_learn_scores_those_not_ignored() -> None:
    task = "residue_classification"
    model, dataset = tiny_model(task=task), tiny_dataset(task, 20)
    assert dataset.targets is not None
    outputs = predict_outputs(model, dataset, Objective(task), max_tokens=50)
    counted = dataset.targets != IGNORED
    truth, said = dataset.targets[counted], outputs.values.argmax(axis=1)[counted]
    found = score_outputs(outputs, dataset, task, 3)
    assert found == pytest.approx(
        {
            "loss": outputs.loss,
            "accuracy": sk.accuracy_score(truth, said),
            "macro_f1": sk.f1_score(truth, said, average="macro"),
            "mcc": sk.matthews_corrcoef(truth, said),
        }
    )


def test_the_loss_told_is_that_of_the_objective() -> None:
    dataset = tiny_dataset("regression")
    assert dataset.targets is not None
    found = score_outputs(Outputs(dataset.targets, 0.125), dataset, "regression", 1)
    assert found["loss"] == 0.125
    assert found["r2"] == 1
