"""The ragged store against plain lists of arrays, in memory and through Arrow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtrain.data import dataset as ragged_arrays
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.store import open_store, write_store
from seqtrain.errors import DataError

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
        patch.setattr(ragged_arrays, "GATHERED", data.draw(st.integers(1, 5)))
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
        patch.setattr(ragged_arrays, "COUNTED", at_once)
        counts = dataset.token_counts()
    assert counts.tolist() == np.bincount(np.concatenate(tokens)).tolist()


@settings(deadline=None, max_examples=30)
@given(kind=st.sampled_from(KINDS), lengths=ragged, seed=st.integers(0, 99))
def test_store_gives_back_the_same_dataset_and_metadata(tmp_path_factory, kind, lengths, seed):
    dataset, _, _ = make(kind, lengths, seed)
    path = tmp_path_factory.mktemp("store") / "records.arrow"
    write_store(path, dataset, {"alphabet": "protein"})
    opened, metadata = open_store(path)
    assert metadata == {"alphabet": "protein"}
    assert list(opened.ids) == list(dataset.ids)
    assert opened.per_residue == dataset.per_residue
    for name in ("tokens", "offsets", "targets"):
        expected, found = getattr(dataset, name), getattr(opened, name)
        if expected is None:
            assert found is None
        else:
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
    assert opened.fingerprint() == dataset.fingerprint()


def test_opened_store_is_memory_mapped_not_copied(tmp_path):
    import pyarrow as pa

    dataset, _, _ = make("residue_classes", [200_000, 300_000])
    write_store(tmp_path / "big.arrow", dataset, {})
    before = pa.total_allocated_bytes()
    opened, _ = open_store(tmp_path / "big.arrow")
    assert pa.total_allocated_bytes() - before < 10_000
    for array in (opened.tokens, opened.offsets, opened.targets):
        assert not array.flags.owndata
        assert not array.flags.writeable


def test_empty_dataset_survives_the_store(tmp_path):
    dataset = SequenceDataset.from_lists([], [])
    write_store(tmp_path / "none.arrow", dataset, {})
    opened, _ = open_store(tmp_path / "none.arrow")
    assert len(opened) == 0
    assert opened.fingerprint() == dataset.fingerprint()


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


def test_target_dtypes_are_int64_for_classes_and_float32_for_values():
    assert make("classes", [3])[0].targets.dtype == np.int64
    assert make("residue_classes", [3])[0].targets.dtype == np.int64
    assert make("values", [3])[0].targets.dtype == np.float32
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


@pytest.mark.parametrize("content", [None, b"", b">a\nACGT\n", b"ARROW1\0\0junk"])
def test_what_is_no_store_is_a_data_error_naming_the_file(tmp_path, content):
    path = tmp_path / "wrong.arrow"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"wrong\.arrow.*data tokenize"):
        open_store(path)


def test_arrow_file_of_another_format_is_refused(tmp_path):
    import pyarrow as pa

    batch = pa.record_batch({"id": pa.array(["a"])})
    path = tmp_path / "other.arrow"
    with pa.ipc.new_file(str(path), batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(DataError, match="not of format"):
        open_store(path)
