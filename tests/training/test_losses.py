import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from seqtrain.training.losses import (
    class_weights_from_counts,
    sequence_loss,
)

RESIDUE_TASKS = ("residue_classification", "mlm")
seeds = st.integers(0, 2**32 - 1)


def padded_batch(lengths, num_classes, width, seed, ignored_share=0.3):
    """Residue logits with NaN in the padding, targets with -100 there and at some residues."""
    generator = torch.Generator().manual_seed(seed)
    shape = len(lengths), width
    logits = torch.randn(*shape, num_classes, generator=generator, dtype=torch.float64)
    targets = torch.randint(num_classes, shape, generator=generator)
    targets[torch.rand(shape, generator=generator) < ignored_share] = -100
    padding = torch.arange(width) >= torch.tensor(lengths)[:, None]
    targets[padding] = -100
    logits[padding] = torch.nan
    return logits.requires_grad_(), targets


def make(task, num_records, seed, num_classes=4):
    generator = torch.Generator().manual_seed(seed)
    if task == "regression":
        return torch.randn(2, num_records, generator=generator, dtype=torch.float64).unbind()
    logits = torch.randn(num_records, num_classes, generator=generator, dtype=torch.float64)
    if task == "multilabel":
        return logits, torch.randint(2, logits.shape, generator=generator).double()
    return logits, torch.randint(num_classes, (num_records,), generator=generator)


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    extra=st.integers(0, 5),
    loss=st.sampled_from(["mse", "huber"]),
    seed=seeds,
)
def test_residues_without_a_number_reach_neither_the_loss_nor_a_gradient(
    lengths, extra, loss, seed
):
    logits, classes = padded_batch(lengths, 1, max(lengths) + extra, seed)
    targets = torch.where(classes < 0, torch.nan, torch.randn(classes.shape).double())
    values = logits.squeeze(-1)
    total, weight = sequence_loss("residue_regression", values, targets, loss=loss)
    total.backward()
    kept = classes >= 0
    oracle = {"mse": F.mse_loss, "huber": F.huber_loss}[loss]
    measured = values.detach()[kept].requires_grad_()
    expected = oracle(measured, targets[kept], reduction="sum")
    expected.backward()
    assert weight == kept.sum()
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(logits.grad.squeeze(-1)[kept], measured.grad)
    assert (logits.grad.squeeze(-1)[~kept] == 0).all()


@pytest.mark.parametrize("task", RESIDUE_TASKS)
@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    extra=st.integers(0, 5),
    smoothing=st.sampled_from([0.0, 0.1]),
    weighted=st.booleans(),
    seed=seeds,
)
def test_residue_loss_and_gradients_equal_each_sequence_alone_whatever_the_padding(
    task, lengths, extra, smoothing, weighted, seed
):
    weights = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64) if weighted else None
    logits, targets = padded_batch(lengths, 3, max(lengths) + extra, seed)
    total, weight = sequence_loss(
        task, logits, targets, class_weights=weights, label_smoothing=smoothing
    )
    total.backward()
    alone_total, alone_weight = 0.0, 0.0
    expected_gradient = torch.zeros_like(logits)
    for record, length in enumerate(lengths):
        for place in range(length):
            target = targets[record, place]
            if target == -100:
                continue
            alone = logits.detach()[record, place].clone().requires_grad_()
            loss = F.cross_entropy(
                alone, target, weights, label_smoothing=smoothing, reduction="sum"
            )
            loss.backward()
            expected_gradient[record, place] = alone.grad
            alone_total += loss.item()
            alone_weight += 1.0 if weights is None else weights[target].item()
    assert total.item() == pytest.approx(alone_total, abs=1e-10)
    assert weight.item() == pytest.approx(alone_weight)
    torch.testing.assert_close(logits.grad, expected_gradient)


@pytest.mark.parametrize("weighted", [False, True])
def test_nothing_but_ignored_targets_gives_zero_with_a_graph(weighted):
    logits, targets = padded_batch([0, 0], 3, 4, seed=0)
    weights = torch.ones(3) if weighted else None
    total, weight = sequence_loss(
        "residue_classification", logits, targets, class_weights=weights, label_smoothing=0.1
    )
    total.backward()
    assert (total.item(), weight.item()) == (0.0, 0.0)
    assert (logits.grad == 0).all()


@settings(deadline=None, max_examples=40)
@given(
    task=st.sampled_from(["classification", "multilabel", "regression"]),
    size=st.integers(1, 5),
    weighted=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.2]),
    seed=seeds,
)
def test_sums_over_micro_batches_give_the_mean_of_the_whole(task, size, weighted, smoothing, seed):
    logits, targets = make(task, 11, seed)
    options = {}
    if task != "regression":
        weights = torch.tensor([0.5, 3.0, 1.0, 0.1]).double() if weighted else None
        options = {"class_weights": weights, "label_smoothing": smoothing}
    parts = [
        sequence_loss(task, some_logits, some_targets, **options)
        for some_logits, some_targets in zip(logits.split(size), targets.split(size), strict=True)
    ]
    mean = sum(total for total, _ in parts) / sum(weight for _, weight in parts)
    match task:
        case "classification":
            expected = F.cross_entropy(logits, targets, weights, label_smoothing=smoothing)
        case "multilabel":
            smooth = targets * (1 - smoothing) + smoothing / 2
            expected = F.binary_cross_entropy_with_logits(logits, smooth, pos_weight=weights)
        case _:
            expected = F.mse_loss(logits, targets)
    torch.testing.assert_close(mean, expected)


def test_cross_entropy_of_a_case_worked_out_by_hand():
    logits = torch.tensor([[0.0, 0.0], [0.0, np.log(3)]])
    total, weight = sequence_loss("classification", logits, torch.tensor([0, 0]))
    assert total.item() == pytest.approx(np.log(2) + np.log(4))
    assert weight.item() == 2


def test_smoothed_binary_targets_are_least_at_the_smoothed_probability():
    logits = torch.zeros(1, 1, requires_grad=True)
    logits.data.fill_(np.log(0.95 / 0.05))
    total, _ = sequence_loss("multilabel", logits, torch.ones(1, 1), label_smoothing=0.1)
    total.backward()
    assert logits.grad.item() == pytest.approx(0, abs=1e-7)


def test_classification_leaves_ignored_records_out():
    logits, targets = make("classification", 5, seed=0)
    logits[2] = torch.nan
    targets[2] = -100
    total, weight = sequence_loss("classification", logits, targets)
    kept = [0, 1, 3, 4]
    expected = F.cross_entropy(logits[kept], targets[kept], reduction="sum")
    torch.testing.assert_close(total, expected)
    assert weight == 4


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize(("loss", "oracle"), [("mse", F.mse_loss), ("huber", F.huber_loss)])
def test_regression_takes_values_with_and_without_a_column(column, loss, oracle):
    values, targets = make("regression", 6, seed=1)
    logits = 3 * values[:, None] if column else 3 * values
    total, weight = sequence_loss("regression", logits, targets.float(), loss=loss)
    expected = oracle(3 * values, targets.float().double(), reduction="sum")
    torch.testing.assert_close(total, expected)
    assert weight == 6


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_half_precision_logits_are_summed_in_float32(task):
    logits, targets = make(task, 3000, seed=0)
    total, weight = sequence_loss(task, logits.bfloat16(), targets)
    wide, _ = sequence_loss(task, logits.bfloat16().double(), targets)
    assert total.dtype == weight.dtype == torch.float32
    assert total.item() == pytest.approx(wide.item(), rel=1e-5)


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_loss_passes_gradcheck(task):
    logits, targets = make(task, 5, seed=3)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sequence_loss(task, x, targets)[0], logits)


@pytest.mark.parametrize(
    ("task", "logits", "targets", "options"),
    [
        ("ranking", (3, 2), torch.zeros(3).long(), {}),
        ("residue_classification", (3, 2, 4), torch.zeros(3, 4).long(), {}),
        ("multilabel", (3, 2), torch.zeros(3, 1), {}),
        ("regression", (3, 2), torch.zeros(3), {}),
        ("regression", (3,), torch.zeros(3, 1), {}),
        ("regression", (3,), torch.zeros(3), {"loss": "cosine"}),
        ("regression", (3,), torch.zeros(3), {"label_smoothing": 0.1}),
        ("regression", (3,), torch.zeros(3), {"class_weights": torch.ones(1)}),
    ],
)
def test_what_does_not_fit_is_refused(task, logits, targets, options):
    with pytest.raises(ValueError, match=r"no loss|expected|mean nothing"):
        sequence_loss(task, torch.zeros(logits), targets, **options)


def test_balanced_weights_equal_scikit_learns_and_average_to_one():
    labels = np.repeat([0, 1, 2], [5, 20, 75])
    counts = torch.tensor([5, 20, 75])
    weights = class_weights_from_counts(counts, "balanced")
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)
    assert (weights * counts).sum().item() == pytest.approx(100)


def test_a_class_that_does_not_occur_weighs_one_and_changes_no_other():
    some = class_weights_from_counts(torch.tensor([5, 0, 15]))
    without = class_weights_from_counts(torch.tensor([5, 15]))
    assert some.tolist() == [without[0], 1.0, without[1]]


def test_unknown_kinds_of_weights_are_refused():
    with pytest.raises(ValueError, match="balanced"):
        class_weights_from_counts(torch.tensor([1, 2]), "square")
