"""Ragged arrays against plain lists of arrays."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtrain.data import ragged as ragged_lists
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.ragged import Texts

KINDS = ("none", "classes", "values", "multilabel", "residue_classes", "residue_values")


def make(kind, lengths, seed=0):
    """A dataset, with the plain lists it was made of."""
    rng = np.random.default_rng(seed)
    ids = [f"record {i} ü" for i in range(len(lengths))]
    tokens = [rng.integers(1, 25, n).astype(np.uint8) for n in lengths]
    targets = {
        "none": lambda: None,
        "classes": lambda: [int(rng.integers(5)) for _ in lengths],
        "values": lambda: [float(rng.normal()) for _ in lengths],
        "multilabel": lambda: [rng.integers(0, 2, 3).astype(np.float32) for _ in lengths],
        "residue_classes": lambda: [rng.integers(-100, 4, n) for n in lengths],
        "residue_values": lambda: [rng.normal(size=n).astype(np.float32) for n in lengths],
    }[kind]()
    per_residue = kind.startswith("residue")
    return (
        SequenceDataset.from_lists(ids, tokens, targets, per_residue=per_residue),
        tokens,
        targets,
    )


ragged = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@settings(deadline=None)
@given(kind=st.sampled_from(KINDS), lengths=ragged, seed=st.integers(0, 99))
def test_records_come_back_as_they_were_put_in(kind, lengths, seed):
    dataset, tokens, targets = make(kind, lengths, seed)
    assert len(dataset) == len(lengths)
    assert dataset.lengths.tolist() == lengths
    for i in range(len(lengths)):
        np.testing.assert_array_equal(dataset.residues(i), tokens[i])
        if targets is not None:
            np.testing.assert_allclose(dataset.target(i), targets[i], rtol=1e-6)


@settings(deadline=None)
@given(kind=st.sampled_from(KINDS), lengths=ragged, data=st.data())
def test_subset_holds_the_chosen_records_in_the_order_asked_for(kind, lengths, data):
    dataset, tokens, _ = make(kind, lengths)
    indices = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=15))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged_lists, "GATHERED", data.draw(st.integers(1, 5)))
        part = dataset.subset(np.array(indices, dtype=np.int64))
    assert list(part.ids) == [dataset.ids[i] for i in indices]
    for new, old in enumerate(indices):
        np.testing.assert_array_equal(part.residues(new), tokens[old])
        if kind != "none":
            np.testing.assert_array_equal(part.target(new), dataset.target(old))


@settings(deadline=None)
@given(lengths=ragged, at_once=st.integers(1, 7))
def test_tokens_are_counted_however_many_at_once(lengths, at_once):
    dataset, tokens, _ = make("none", lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged_lists, "COUNTED", at_once)
        counts = dataset.token_counts()
    assert counts.tolist() == np.bincount(np.concatenate(tokens)).tolist()


@pytest.mark.parametrize("change", ["ids", "tokens", "offsets", "targets"])
def test_fingerprint_changes_with_every_part(change):
    dataset, _, _ = make("classes", [3, 4])
    parts = {
        "ids": ["a", "b"],
        "tokens": dataset.tokens[::-1].copy(),
        "offsets": np.array([0, 2, 7]),
        "targets": dataset.targets + 1,
    }
    fields = {name: getattr(dataset, name) for name in parts}
    other = SequenceDataset(**{**fields, change: parts[change]})
    assert other.fingerprint() != dataset.fingerprint()


def test_target_dtypes_are_int64_for_classes_and_float64_for_values():
    assert make("classes", [3])[0].targets.dtype == np.int64
    assert make("residue_classes", [3])[0].targets.dtype == np.int64
    assert make("values", [3])[0].targets.dtype == np.float64
    assert make("multilabel", [3])[0].targets.shape == (1, 3)


def test_arrays_that_contradict_each_other_are_refused():
    tokens, offsets = np.ones(5, np.uint8), np.array([0, 2, 5])
    with pytest.raises(ValueError, match="one more offset"):
        SequenceDataset(["a"], tokens, offsets)
    with pytest.raises(ValueError, match="from 0 to 5"):
        SequenceDataset(["a", "b"], tokens, np.array([0, 2, 4]))
    with pytest.raises(ValueError, match="expected 2 targets"):
        SequenceDataset(["a", "b"], tokens, offsets, np.zeros(5, np.int64))
    with pytest.raises(ValueError, match="as long as its record"):
        SequenceDataset.from_lists(["a"], [tokens], [np.zeros(4)], per_residue=True)
    with pytest.raises(ValueError, match="no targets"):
        SequenceDataset(["a", "b"], tokens, offsets).target(0)


@settings(deadline=None)
@given(kind=st.sampled_from(KINDS), pieces=st.lists(ragged, min_size=1, max_size=4))
def test_concatenated_parts_hold_all_records_in_order(kind, pieces):
    parts = [make(kind, lengths, seed)[0] for seed, lengths in enumerate(pieces)]
    whole = SequenceDataset.concatenated(parts)
    expected = [(part, i) for part in parts for i in range(len(part))]
    assert list(whole.ids) == [part.ids[i] for part, i in expected]
    for new, (part, old) in enumerate(expected):
        np.testing.assert_array_equal(whole.residues(new), part.residues(old))
        if kind != "none":
            np.testing.assert_array_equal(whole.target(new), part.target(old))
    assert whole is parts[0] or len(parts) > 1, "one part is not copied"


@settings(deadline=None)
@given(lengths=ragged, longest=st.integers(1, 50))
def test_truncated_records_keep_their_beginning(lengths, longest):
    dataset, tokens, _ = make("classes", lengths)
    cut = dataset.truncated(longest)
    assert cut.targets is None
    assert list(cut.ids) == list(dataset.ids)
    for i, whole in enumerate(tokens):
        np.testing.assert_array_equal(cut.residues(i), whole[:longest])


@settings(deadline=None)
@given(kind=st.sampled_from(KINDS), lengths=ragged, at_once=st.integers(1, 5))
def test_fingerprint_is_that_of_all_ids_at_once_and_of_their_arrays(kind, lengths, at_once):
    dataset, _, _ = make(kind, lengths)
    digest = hashlib.sha256(json.dumps(list(dataset.ids)).encode())
    targets = dataset.targets
    if targets is not None and targets.dtype == np.float64:
        targets = targets.astype(np.float32)  # as before targets were kept in float64
    for array in (dataset.tokens, dataset.offsets, targets):
        if array is not None:
            digest.update(f"{array.dtype.str}{array.shape}{dataset.per_residue}".encode())
            digest.update(array.tobytes())
    texts = SequenceDataset(
        Texts.of(dataset.ids), dataset.tokens, dataset.offsets, dataset.targets, dataset.per_residue
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqtrain.data.dataset.ITERATED", at_once)
        assert dataset.fingerprint() == texts.fingerprint() == digest.hexdigest()
