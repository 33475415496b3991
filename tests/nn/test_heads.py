"""Heads: how they begin, and what a user reads from their logits."""

import math

import pytest
import torch

from seqtrain.nn.heads import ClassHead, MultilabelHead, RegressionHead


@pytest.mark.parametrize("head", [ClassHead(6, 3, 0.5), MultilabelHead(6, 3, 0.5)])
def test_a_new_class_head_says_nothing(head: ClassHead) -> None:
    logits = head(torch.randn(4, 6) * 100)
    assert logits.shape == (4, 3)
    assert not logits.any()


def test_class_probabilities_are_a_softmax() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]])
    torch.testing.assert_close(ClassHead(2, 2, 0).readout(logits), torch.tensor([[0.25, 0.75]]))


def test_label_probabilities_are_independent() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]])
    torch.testing.assert_close(MultilabelHead(2, 2, 0).readout(logits), torch.tensor([[0.5, 0.75]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_readouts_are_float32_whatever_the_logits_are(dtype: torch.dtype) -> None:
    logits = torch.randn(5, 3).to(dtype)
    assert ClassHead(2, 3, 0).readout(logits).dtype == torch.float32
    assert MultilabelHead(2, 3, 0).readout(logits).dtype == torch.float32
    assert RegressionHead(2, 0).readout(logits[:, 0]).dtype == torch.float32
    sums = ClassHead(2, 3, 0).readout(logits).sum(dim=1)
    torch.testing.assert_close(sums, torch.ones(5))


def test_a_new_regression_head_predicts_the_mean_target() -> None:
    head = RegressionHead(6, 0.5, mean=40.0, std=3.0)
    logits = head(torch.randn(4, 6))
    assert logits.shape == (4,)
    assert head.readout(logits).tolist() == [40.0] * 4


def test_reading_out_undoes_the_scaling_of_targets() -> None:
    head = RegressionHead(2, 0, mean=-7.0, std=0.25)
    targets = torch.tensor([-7.0, -6.5, 100.0])
    scaled = head.scale(targets)
    torch.testing.assert_close(scaled, torch.tensor([0.0, 2.0, 428.0]))
    torch.testing.assert_close(head.readout(scaled), targets)


def test_the_scale_of_targets_travels_with_the_weights() -> None:
    wanted = RegressionHead(2, 0, mean=5.0, std=2.0)
    found = RegressionHead(2, 0)
    found.load_state_dict(wanted.state_dict())
    assert found.readout(torch.tensor([1.0])).item() == 7.0


def test_dropout_is_off_in_evaluation() -> None:
    head = ClassHead(50, 3, 0.9)
    torch.nn.init.normal_(head.linear.weight)
    x = torch.randn(2, 50)
    assert not torch.equal(head.train()(x), head(x))
    assert torch.equal(head.eval()(x), head(x))
