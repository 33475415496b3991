"""Families of variants are told from other records, without a look at their labels."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.families import find_family


def records(rows: Sequence[np.ndarray]) -> SequenceDataset:
    return SequenceDataset.from_lists([f"r{i}" for i in range(len(rows))], rows)


def variants(num_records: int, length: int, changes: int, seed: int = 0) -> list[np.ndarray]:
    """Records that each differ from one random sequence at so many places."""
    rng = np.random.default_rng(seed)
    parent = rng.integers(1, 21, length).astype(np.uint8)
    rows = []
    for _ in range(num_records):
        row = parent.copy()
        where = rng.choice(length, changes, replace=False)
        row[where] = row[where] % 20 + 1
        rows.append(row)
    return rows


@given(
    num_records=st.integers(20, 80),
    length=st.integers(60, 120),
    changes=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_variants_are_a_family_with_their_number_of_changes(
    num_records: int, length: int, changes: int, seed: int
) -> None:
    found = find_family(records(variants(num_records, length, changes, seed)))
    assert found is not None
    assert found.length == length
    assert found.changes == changes


def test_a_few_insertions_do_not_hide_a_family() -> None:
    rows = variants(60, 100, 2)
    rows[:5] = [np.append(row, np.uint8(3)) for row in rows[:5]]
    assert find_family(records(rows)) is not None


@pytest.mark.parametrize(
    "rows",
    [
        [np.random.default_rng(i).integers(1, 21, 80).astype(np.uint8) for i in range(50)],
        [np.random.default_rng(i).integers(1, 21, 30 + i).astype(np.uint8) for i in range(50)],
        variants(19, 80, 1),
        variants(50, 8, 4),
        variants(50, 80, 0),
    ],
    ids=["one length", "many lengths", "few records", "mostly changed", "all equal"],
)
def test_other_records_are_none(rows: list[np.ndarray]) -> None:
    assert find_family(records(rows)) is None
