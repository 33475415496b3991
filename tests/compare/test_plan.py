"""Arms: what they share, and that a breach of it is noticed."""

from pathlib import Path

import pytest
import torch
from compare.comparisons import tiny_comparison

from seqtrain.compare import plan as plan_module
from seqtrain.compare.plan import (
    Comparison,
    Condition,
    check_same_start,
    check_same_training,
    conditions_of,
    limit_records,
)
from seqtrain.config import NORMS


def test_arms_go_seed_by_seed_through_every_combination() -> None:
    conditions = conditions_of(["a", "b"], ["random", "packed"], ["cnn"])
    arms = Comparison({}, conditions, 2).arms()
    assert len(arms) == len({arm.name for arm in arms}) == 8
    assert [arm.seed for arm in arms] == [0] * 4 + [1] * 4


def test_every_condition_but_the_first_is_held_to_the_nearest_reference() -> None:
    conditions = conditions_of(["a", "b"], ["random", "packed"], ["cnn", "transformer"])
    reference = Comparison({}, conditions, 1).reference
    assert reference(Condition("a", "random", "cnn")) is None
    assert reference(Condition("b", "packed", "cnn")) == Condition("a", "packed", "cnn")
    assert reference(Condition("a", "packed", "cnn")) == Condition("a", "random", "cnn")
    assert reference(Condition("a", "random", "transformer")) == conditions[0]


def test_all_norms_begin_with_the_same_weights_and_draws(tmp_path: Path) -> None:
    check_same_start(tiny_comparison(tmp_path, list(NORMS)), seed=3)


def test_a_norm_that_draws_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = tiny_comparison(tmp_path, ["masked_batch", "layer"])
    build = plan_module.build_model

    def drawing(config, *arguments):  # type: ignore[no-untyped-def]
        if config.norm.name == "layer":
            torch.rand(1)
        return build(config, *arguments)

    monkeypatch.setattr(plan_module, "build_model", drawing)
    with pytest.raises(ValueError, match="layer-random-cnn, seed 0: does not begin"):
        check_same_start(comparison, seed=0)


def test_training_on_other_batches_is_noticed_at_its_epoch() -> None:
    mine = [{"batches": "x", "draws": "y"}, {"batches": "x", "draws": "z"}]
    check_same_training("arm", mine, mine[:1])
    with pytest.raises(ValueError, match="from epoch 2 on its draws"):
        check_same_training("arm", mine, [mine[0], {"batches": "x", "draws": "other"}])


def test_fewer_records_are_the_same_ones_each_time(tmp_path: Path) -> None:
    plan = tiny_comparison(tmp_path, ["none"]).plans["cnn"]
    a, b = (limit_records(plan, 7).data.train for _ in range(2))
    assert len(a) == 7
    assert list(a.ids) == list(b.ids)
