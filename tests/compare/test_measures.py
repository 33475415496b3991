"""What is measured of a model, each held against a slow way of its own."""

import copy

import numpy as np
import pytest
import torch
from compare.comparisons import tiny_comparison
from sklearn.metrics import matthews_corrcoef
from tiny_models import tiny_model

from seqtrain.compare.analysis import _level
from seqtrain.compare.measures import (
    INTERVAL_DRAWS,
    calibration_error,
    metric_by,
    padded_outputs,
    padding_shift,
    running_statistics_error,
    steps_to,
    train_eval_losses,
)
from seqtrain.compare.run import Result
from seqtrain.data.dataset import SequenceDataset
from seqtrain.training.objective import Objective
from seqtrain.training.outputs import Outputs

BATCH_NORMS = ("masked_batch", "batch", "leaky_batch")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> SequenceDataset:
    """Twenty-four records of 10 to 60 residues in two classes."""
    plan = tiny_comparison(tmp_path_factory.mktemp("data"), ["none"]).plans["cnn"]
    return plan.data.train


def tokens_of(dataset: SequenceDataset, record: int) -> torch.Tensor:
    start, end = dataset.offsets[record], dataset.offsets[record + 1]
    return torch.from_numpy(dataset.tokens[start:end].astype(np.int64))[None]


def test_padding_shift_is_what_appending_padding_by_hand_moves(dataset: SequenceDataset) -> None:
    model = tiny_model(norm="leaky_batch", task="classification")
    found = padding_shift(model, dataset)
    for record in range(5):
        alone = tokens_of(dataset, record)
        length = torch.tensor([alone.shape[1]])
        for way, times in (("padded_2x", 2), ("padded_4x", 4)):
            padded = torch.cat([alone, alone.new_zeros(1, (times - 1) * alone.shape[1])], dim=1)
            with torch.inference_mode():
                moved = (model(padded, length) - model(alone, length)).abs().max()
            assert found[way][record] == pytest.approx(float(moved), rel=1e-4, abs=1e-6)
    assert {len(values) for values in found.values()} == {24}
    assert found["neighbours"].max() > 1e-3


@pytest.mark.parametrize("norm", ["masked_batch", "batch", "masked_layer", "layer", "none"])
def test_neither_padding_nor_neighbours_move_a_norm_that_zeroes_padding(
    dataset: SequenceDataset, norm: str
) -> None:
    found = padding_shift(tiny_model(norm=norm), dataset)
    assert max(values.max() for values in found.values()) < 1e-5


def pooled_statistics(
    model: torch.nn.Module, dataset: SequenceDataset, layer: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Moments of what a block's norm receives, over all records one by one, in evaluation."""
    rows: list[torch.Tensor] = []
    norm = model.encoder.blocks[layer].norm  # type: ignore[union-attr, index]
    handle = norm.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0][0].double()))
    with torch.inference_mode():
        for record in range(len(dataset)):
            tokens = tokens_of(dataset, record)
            model(tokens, torch.tensor([tokens.shape[1]]))
    handle.remove()
    every = torch.cat(rows)
    return every.mean(0), every.var(0, correction=1)


@pytest.mark.parametrize("norm", BATCH_NORMS)
def test_running_statistics_are_held_against_all_residues_pooled_layer_by_layer(
    dataset: SequenceDataset, norm: str
) -> None:
    model = tiny_model(norm=norm)
    before = copy.deepcopy(model.state_dict())
    found = running_statistics_error(model, dataset, max_tokens=200)
    exact = tiny_model(norm="masked_batch")
    for layer, row in enumerate(found):
        mean, var = pooled_statistics(exact, dataset, layer)
        running = model.encoder.blocks[layer].norm
        away = (running.running_mean - mean).abs() / (var + running.eps).sqrt()
        ratio = ((running.running_var + running.eps) / (var + running.eps)).log().abs()
        assert row["layer"] == f"encoder.blocks.{layer}.norm"
        assert row["mean"] == pytest.approx(float(away.mean()), rel=1e-3)
        assert row["log_var"] == pytest.approx(float(ratio.mean()), rel=1e-3)
        # The next layer is judged behind this one with exact statistics.
        exact.encoder.blocks[layer].norm.running_mean.copy_(mean)
        exact.encoder.blocks[layer].norm.running_var.copy_(var)
    assert len(found) == 3
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_norms_without_running_statistics_have_no_error_of_them(dataset: SequenceDataset) -> None:
    assert running_statistics_error(tiny_model(norm="layer"), dataset, 200) == []


def test_training_and_evaluation_losses_differ_by_the_statistics_alone(
    dataset: SequenceDataset,
) -> None:
    objective = Objective("classification")

    def losses(norm: str) -> tuple[float, float]:
        model = tiny_model(norm=norm)
        before = copy.deepcopy(model.state_dict())
        found = train_eval_losses(model, dataset, objective, batching="random", max_tokens=200)
        after = model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        return found

    in_training, in_evaluation = losses("layer")
    assert in_training == pytest.approx(in_evaluation, rel=1e-5)
    in_training, in_evaluation = losses("masked_batch")
    assert abs(in_training - in_evaluation) > 1e-3
    total = 0.0
    model = tiny_model(norm="masked_batch")
    for record in range(len(dataset)):
        tokens = tokens_of(dataset, record)
        logits = model(tokens, torch.tensor([tokens.shape[1]]))
        target = torch.tensor([int(dataset.targets[record])])  # type: ignore[index]
        total += torch.nn.functional.cross_entropy(logits, target).item()
    assert in_evaluation == pytest.approx(total / len(dataset), rel=1e-4)


def slow_calibration(confidence: np.ndarray, right: np.ndarray) -> float:
    """Guo et al. 2017, equation 3, bin by bin."""
    error = 0.0
    for b in range(15):
        low, high = b / 15, (b + 1) / 15
        inside = (confidence >= low) & ((confidence < high) | (b == 14))
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            error += inside.mean() * gap
    return error


def test_calibration_error_is_the_gap_of_every_bin_by_its_share(dataset: SequenceDataset) -> None:
    values = np.random.default_rng(0).dirichlet([1, 1], 24).astype(np.float32)
    right = values.argmax(1) == dataset.targets
    expected = slow_calibration(values.max(1).astype(float), right)
    found = calibration_error(Outputs(values, 0.0), dataset, "classification")
    assert found == pytest.approx(expected, rel=1e-5)
    assert np.isnan(calibration_error(Outputs(values[:, 0], 0.0), dataset, "regression"))


def test_the_score_of_a_quarter_is_that_of_its_records_alone(dataset: SequenceDataset) -> None:
    values = np.random.default_rng(1).dirichlet([1, 1], 24).astype(np.float32)
    rows = metric_by(dataset.lengths, Outputs(values, 0.0), dataset, "classification", 2, "mcc")
    assert sum(row["n"] for row in rows) == 24
    assert len(rows) == 4
    for row in rows:
        inside = (dataset.lengths >= row["low"]) & (dataset.lengths <= row["high"])
        assert inside.sum() == row["n"]
        truth, said = dataset.targets[inside], values[inside].argmax(1)  # type: ignore[index]
        assert row["value"] == pytest.approx(matthews_corrcoef(truth, said), abs=1e-6)
        assert row["median"] == np.median(dataset.lengths[inside])
        rng, size = np.random.default_rng(0), len(said)
        drawn = [rng.integers(size, size=size) for _ in range(INTERVAL_DRAWS)]
        defined = [d for d in drawn if len({*truth[d]}) > 1]  # else there is no score
        scores = [matthews_corrcoef(truth[d], said[d]) for d in defined]
        assert [row["from"], row["to"]] == pytest.approx(np.quantile(scores, [0.025, 0.975]))


def test_padded_outputs_are_those_of_records_alone_where_padding_moves_nothing(
    dataset: SequenceDataset,
) -> None:
    model = tiny_model(norm="masked_batch")
    outputs, shares = padded_outputs(model, dataset, max_tokens=300)
    for record in range(len(dataset)):
        tokens = tokens_of(dataset, record)
        alone = model(tokens, torch.tensor([tokens.shape[1]])).softmax(-1)[0]
        np.testing.assert_allclose(outputs.values[record], alone.detach(), atol=1e-5)
    assert shares.min() == 0
    assert shares.max() < 1 - dataset.lengths.min() / dataset.lengths.max() + 1e-9
    _, none = padded_outputs(model, dataset, max_tokens=300, max_sequences=1)
    assert not none.any()
    other, _ = padded_outputs(tiny_model(norm="leaky_batch"), dataset, max_tokens=300)
    assert np.abs(other.values - outputs.values).max() > 1e-3


def test_a_level_is_reached_at_the_first_step_that_has_it() -> None:
    curve = [{"step": s, "value": v} for s, v in ((10, None), (20, 0.4), (30, 0.6), (40, 0.5))]
    assert steps_to(0.5, curve, higher=True) == 30
    assert steps_to(0.4, curve, higher=False) == 20
    assert steps_to(0.7, curve, higher=True) is None


def test_three_quarters_of_the_arms_reach_the_level() -> None:
    arms: list[Result] = [{"curve": [{"value": v / 10}, {"value": 0.0}]} for v in range(1, 9)]
    level = _level(arms, "mcc")
    assert sum(max(p["value"] for p in arm["curve"]) >= level for arm in arms) >= 6
    assert level == pytest.approx(0.2)
