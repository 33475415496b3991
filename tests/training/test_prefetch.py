"""Batches made ahead: in order, so many and no more, pinned, errors and all."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_training import tiny_dataset

from seqtrain.data.batching import Batch, collate
from seqtrain.training.prefetch import AHEAD, made_ahead

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GROUPS = [np.array([i, i + 1]) for i in range(8)]


@pytest.fixture
def made() -> list[int]:
    return []


@pytest.fixture
def make(made: list[int]) -> Callable[[np.ndarray], list[Batch]]:
    dataset = tiny_dataset()

    def make(index: np.ndarray) -> list[Batch]:
        made.append(int(index[0]))
        return [collate(dataset, index, packed=True)]

    return make


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Pinning without a GPU: the shapes of what was to be pinned."""
    seen: list[torch.Size] = []

    def pin(self: torch.Tensor) -> torch.Tensor:
        seen.append(self.shape)
        return self

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    return seen


def first_records(batches: list[Batch]) -> int:
    return int(batches[0].index.min())


def test_on_a_cpu_each_batch_is_made_when_it_is_asked_for(made, make, pinned) -> None:
    batches = made_ahead(make, GROUPS, CPU)
    assert made == []
    assert first_records(next(batches)) == 0
    assert made == [0]
    assert [first_records(batch) for batch in batches] == list(range(1, 8))
    assert pinned == []


def test_for_a_gpu_they_come_in_the_same_order_pinned_and_only_so_far_ahead(
    made, make, pinned
) -> None:
    batches = made_ahead(make, GROUPS, CUDA)
    assert first_records(next(batches)) == 0
    assert len(made) <= 1 + AHEAD
    assert [first_records(batch) for batch in batches] == list(range(1, 8))
    assert made == list(range(8))
    assert len(pinned) == 3 * len(GROUPS)  # tokens, mask, targets


def test_an_error_in_making_reaches_the_trainer(pinned) -> None:
    def fail(_index: np.ndarray) -> list[Batch]:
        raise ValueError("no such record")

    with pytest.raises(ValueError, match="no such record"):
        list(made_ahead(fail, GROUPS, CUDA))


def test_a_loop_that_stops_early_leaves_no_thread_at_work(made, make, pinned) -> None:
    batches = made_ahead(make, GROUPS, CUDA)
    next(batches)
    batches.close()
    assert len(made) <= 1 + AHEAD
