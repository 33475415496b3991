"""Lists end to end against plain lists."""

import errno
import gc
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traced_memory import most_memory

from seqtrain.data import ragged
from seqtrain.data.ragged import Column, Texts, byte_counts, gather, offsets_of, positions, shares

lists = st.lists(st.lists(st.integers(0, 255), max_size=9), max_size=12)
strings = st.lists(st.text(max_size=9), max_size=12)


@given(lists, st.data())
def test_values_are_gathered_list_after_list(values, data):
    flat = np.array([v for one in values for v in one], np.int32)
    offsets = offsets_of(np.array([len(one) for one in values], np.int64))
    assert offsets.tolist() == [sum(map(len, values[:i])) for i in range(len(values) + 1)]
    chosen = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=15)) if values else []
    begins, lengths = offsets[np.array(chosen, int)], np.diff(offsets)[np.array(chosen, int)]
    expected = [v for i in chosen for v in values[i]]
    assert flat[positions(begins, lengths)].tolist() == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged, "GATHERED", data.draw(st.integers(1, 5)))
        found = gather(flat, begins, lengths)
    assert found.dtype == flat.dtype
    assert found.tolist() == expected


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 20))
def test_shares_cover_all_lists_and_hold_no_more_than_asked_for(lengths, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged, "GATHERED", most)
        found = list(shares(np.array(lengths, np.int64)))
    assert [i for first, last in found for i in range(first, last)] == list(range(len(lengths)))
    for first, last in found:
        assert last == first + 1 or sum(lengths[first:last]) <= most
        full = last == len(lengths) or sum(lengths[first : last + 1]) > most
        assert full, "a share takes what it has room for"


def test_long_lists_are_copied_in_little_more_memory_than_they_take():
    values = np.arange(4_000_000, dtype=np.uint8)
    begins = np.arange(0, len(values), 1_000_000)
    copy = partial(gather, values, begins[::-1], np.full(4, 1_000_000))
    assert most_memory(copy) < 1.1 * len(values)
    assert (copy() == values.reshape(4, -1)[::-1].ravel()).all()


def test_a_full_disk_is_told_with_its_folder_and_nothing_more(tmp_path, monkeypatch, recwarn):
    class Full:
        """A file on it."""

        def fail(self, *_):
            raise OSError(errno.ENOSPC, "No space left on device")

        write = flush = close = fail

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Full())
    column = Column(tmp_path)
    with pytest.raises(OSError, match="No space left on device") as caught:
        column.append(b"MKV")
    assert caught.value.filename == str(tmp_path)
    with pytest.raises(OSError, match="No space left on device") as caught:
        column.arrays()
    assert caught.value.filename == str(tmp_path)
    caught = column = None  # the file is closed, which fails once more and is no news
    gc.collect()
    assert not recwarn.list


@given(strings, st.data())
def test_texts_are_a_list_of_strings(values, data):
    texts = Texts.of(iter(values))
    assert len(texts) == len(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged, "ITERATED", data.draw(st.integers(1, 5)))
        assert list(texts) == values
    for i in range(-len(values), len(values)):
        assert texts[i] == texts[np.int64(i)] == values[i]
    some = slice(*(data.draw(st.none() | st.integers(-14, 14)) for _ in range(2)))
    assert list(texts[some]) == values[some]
    if values:
        chosen = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=15))
        assert list(texts.take(np.array(chosen, int))) == [values[i] for i in chosen]


@pytest.mark.parametrize("i", [2, -3])
def test_texts_end_where_a_list_would(i):
    with pytest.raises(IndexError):
        Texts.of(["a", "b"])[i]


@given(values=st.lists(st.binary(max_size=9), max_size=12))
def test_a_column_holds_the_same_in_memory_and_in_a_file(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("column")
    for column in (Column(), Column(folder)):
        for value in values:
            column.append(value)
        data, offsets = column.arrays()
        found = [data[a:b].tobytes() for a, b in pairwise(offsets)]
        assert found == values
        del column
        assert data.tobytes() == b"".join(values), "the arrays outlive the column"
    assert list(folder.iterdir()) == [], "its file has no name"


@given(st.binary(max_size=99), st.integers(1, 7))
def test_bytes_are_counted_however_many_at_once(values, at_once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged, "COUNTED", at_once)
        counts = byte_counts(np.frombuffer(values, np.uint8))
    assert counts.tolist() == [values.count(byte) for byte in range(256)]
