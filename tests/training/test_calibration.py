"""Temperatures: found again where they are known, the likeliest, harmless where nothing is."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from tiny_models import draw_tokens, tiny_model

from seqtrain.training.calibration import (
    HOTTEST,
    Calibration,
    as_trained,
    calibration_error,
    fit_temperature,
    readout,
    set_temperature,
)

CALIBRATION = Calibration((2.0,), "valid", 10, 0.2, 0.1)


def drawn(task: str, temperature: float, count: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Logits, and targets drawn with the probabilities that the temperature makes of them."""
    draw = np.random.default_rng(seed)
    logits = (draw.normal(size=(count, 4)) * 3).astype(np.float32)
    p = readout(task, (logits / temperature).astype(np.float32)).astype(np.float64)
    if task == "multilabel":
        return logits, (draw.random(p.shape) < p).astype(np.float32)
    sums = p.cumsum(axis=1)
    return logits, (draw.random((count, 1)) * sums[:, -1:] > sums).sum(axis=1).astype(np.int64)


@pytest.mark.parametrize("task", ["classification", "residue_classification", "multilabel"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_drew_the_targets_is_found_again(
    task: str, temperature: float
) -> None:
    found = fit_temperature(task, *drawn(task, temperature, 20_000))
    assert len(found) == (4 if task == "multilabel" else 1)
    assert found == pytest.approx([temperature] * len(found), rel=0.08)


@given(count=st.integers(1, 60), seed=st.integers(0, 999), scale=st.floats(0.1, 8))
@settings(max_examples=25)
def test_no_other_temperature_is_likelier(count: int, seed: int, scale: float) -> None:
    logits, targets = drawn("classification", 1.5, count, seed)
    logits = (logits * scale).astype(np.float32)

    def cost(log_t: float) -> float:
        z = logits.astype(np.float64) / np.exp(log_t)
        z -= z.max(axis=1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        return float(-log_p[np.arange(count), targets].sum() + log_t**2 / 2)

    (found,) = fit_temperature("classification", logits, targets)
    best = minimize_scalar(cost, bounds=(-np.log(HOTTEST), np.log(HOTTEST)), method="bounded")
    assert cost(np.log(found)) <= best.fun + 1e-4 * (1 + abs(best.fun))


def test_each_label_gets_its_own_temperature() -> None:
    logits, targets = drawn("multilabel", 1.0, 5_000)
    together = fit_temperature("multilabel", logits, targets)
    for i, temperature in enumerate(together):
        alone = fit_temperature("multilabel", logits[:, i : i + 1], targets[:, i : i + 1])
        assert alone == pytest.approx((temperature,), rel=1e-3)
    other = logits * np.array([1, 1, 4, 1], np.float32)
    moved = fit_temperature("multilabel", other, targets)
    assert moved[2] > 3 * together[2]
    assert moved[0] == together[0]


def test_a_part_without_an_error_does_not_make_a_model_certain() -> None:
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2] * 4]
    (found,) = fit_temperature("classification", logits, np.array([0, 1, 2] * 4))
    assert 0.1 < found < 1


def test_residues_that_do_not_count_are_left_out() -> None:
    logits, targets = drawn("classification", 2.0, 300)
    wrong = np.concatenate([logits, np.full((500, 4), 9, np.float32) * np.eye(4)[0]])
    ignored = np.concatenate([targets, np.full(500, -100)])
    expected = fit_temperature("residue_classification", logits, targets)
    assert fit_temperature("residue_classification", wrong.astype(np.float32), ignored) == expected


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_calibrated_probabilities_come_true(task: str) -> None:
    logits, targets = drawn(task, 3.0, 20_000)
    (temperature, *_) = fit_temperature(task, logits, targets)
    before = calibration_error(task, readout(task, logits), targets)
    scaled = readout(task, (logits / temperature).astype(np.float32))
    after = calibration_error(task, scaled, targets)
    assert before > 0.1
    assert after < 0.02


def test_the_error_is_counted_by_hand() -> None:
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.62, 0.38], [0.5, 0.5]], np.float32)
    targets = np.array([0, 1, 0, -100])
    # Bins of 1/15: two at 0.9, half of them right; one at 0.62, right; the last does not count.
    expected = (2 * abs(0.9 - 0.5) + abs(0.62 - 1)) / 3
    assert calibration_error("classification", p, targets) == pytest.approx(expected, rel=1e-6)
    labels = np.array([[1, 0], [1, 0], [0, 1], [0, 0]], np.float32)
    answers = [(0.9, 1), (0.9, 1), (0.9, 1), (0.9, 1), (0.62, 0), (0.62, 0), (0.5, 0), (0.5, 0)]
    bins: dict[int, list[tuple[float, int]]] = {}
    for confidence, right in answers:
        bins.setdefault(int(confidence * 15), []).append((confidence, right))
    by_hand = sum(abs(sum(c - r for c, r in group)) for group in bins.values()) / 8
    assert calibration_error("multilabel", p, labels) == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_what_a_model_said_before_can_be_had_again(task: str) -> None:
    logits, _ = drawn(task, 1.0, 200)
    scaled = readout(task, logits / 2)
    np.testing.assert_allclose(
        as_trained(task, scaled, CALIBRATION), readout(task, logits), atol=1e-5
    )


@pytest.mark.parametrize("task", ["classification", "multilabel", "residue_classification"])
def test_a_model_reads_out_by_its_temperature_and_answers_the_same(task: str) -> None:
    model = tiny_model(task=task)
    tokens, lengths = draw_tokens([7, 3])
    with torch.no_grad():
        logits = model(tokens, lengths)
        plain = model.head.readout(logits)
        temperature = (0.5, 2.0, 4.0) if task == "multilabel" else (2.0,)
        set_temperature(model, temperature)
        scaled = logits / torch.tensor(temperature)
        wanted = scaled.sigmoid() if task == "multilabel" else scaled.softmax(-1)
        found = model.head.readout(logits)
        assert torch.allclose(found, wanted)
        assert not torch.allclose(found, plain)
        if task == "multilabel":
            assert torch.equal(found > 0.5, plain > 0.5)
        else:
            assert torch.equal(found.argmax(-1), plain.argmax(-1))
        set_temperature(model)
        assert torch.equal(model.head.readout(logits), plain)


def test_weights_of_before_load_and_the_temperature_is_none_of_them() -> None:
    model = tiny_model()
    assert "head.temperature" not in model.state_dict()
    with pytest.raises(ValueError, match="2 temperatures for 3 classes"):
        set_temperature(model, (1.0, 2.0))


def test_a_calibration_comes_back_from_its_file() -> None:
    saved = json.loads(CALIBRATION.to_json())
    assert Calibration.from_dict(saved) == CALIBRATION
    assert "T = 2" in CALIBRATION.words()
    for key, value in (("method", "magic"), ("temperature", [0]), ("temperature", [])):
        with pytest.raises(ValueError, match="expected"):
            Calibration.from_dict({**saved, key: value})
