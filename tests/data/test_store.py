"""Records that went through an Arrow file."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenized_records import GAPPED, PROTEIN, read, write

from seqtrain.data.store import is_store, open_store, write_store
from seqtrain.errors import DataError


@given(sequences=st.lists(GAPPED, min_size=1, max_size=8))
def test_store_gives_back_all_but_lines_and_files(tmp_path_factory, sequences):
    folder = tmp_path_factory.mktemp("store")
    data = read(write(folder / "a.fa", sequences))
    write_store(folder / "a.arrow", data, PROTEIN)
    assert sorted(path.name for path in folder.iterdir()) == ["a.arrow", "a.fa"]
    opened, tokenizer = open_store(folder / "a.arrow")
    assert tokenizer == PROTEIN
    assert opened.letters == data.letters
    assert opened.sequences.fingerprint() == data.sequences.fingerprint()
    for i, header in enumerate(data.headers()):
        assert opened.header(i) == header._replace(source=str(folder / "a.arrow"), line=0)
        np.testing.assert_array_equal(opened.kept(i), data.kept(i))


def test_opened_store_is_memory_mapped_not_copied(tmp_path):
    import pyarrow as pa

    data = read(write(tmp_path / "a.fa", ["MKVL" * 50_000, "A-C" * 30_000]))
    write_store(tmp_path / "big.arrow", data, PROTEIN)
    before = pa.total_allocated_bytes()
    opened, _ = open_store(tmp_path / "big.arrow")
    assert pa.total_allocated_bytes() - before < 10_000
    for array in (opened.sequences.tokens, opened.sequences.offsets, *opened.dropped):
        assert not array.flags.owndata
        assert not array.flags.writeable


def test_store_is_told_from_its_first_bytes(tmp_path):
    write_store(tmp_path / "any.name", read(write(tmp_path / "a.fa", ["MK"])), PROTEIN)
    assert is_store(tmp_path / "any.name")
    assert not any(map(is_store, (tmp_path / "a.fa", tmp_path, tmp_path / "none", "-")))


def test_store_that_could_not_be_written_leaves_the_old_one_alone(tmp_path, monkeypatch):
    data = read(write(tmp_path / "a.fa", ["MK"]))
    write_store(tmp_path / "a.arrow", data, PROTEIN)
    before = (tmp_path / "a.arrow").read_bytes()
    other = read(write(tmp_path / "b.fa", ["MKVLA"]))
    monkeypatch.setattr("pyarrow.RecordBatchFileWriter.write_batch", _fail, raising=False)
    with pytest.raises(OSError, match="disk is full"):
        write_store(tmp_path / "a.arrow", other, PROTEIN)
    assert (tmp_path / "a.arrow").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.arrow", "a.fa", "b.fa"]


def _fail(*_):
    raise OSError("the disk is full")


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


def test_damage_is_told_or_harmless(tmp_path):
    """Any bit of the file, be it data, what they are called, or what was said of them."""
    data = read(write(tmp_path / "a.fa", ["MKV-LW", "XA*", "MKVL"]))
    write_store(tmp_path / "a.arrow", data, PROTEIN)
    content = (tmp_path / "a.arrow").read_bytes()
    rng = np.random.default_rng(0)
    harmless, told = 0, []
    for place in rng.choice(len(content), 400, replace=False).tolist():
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "b.arrow").write_bytes(damaged)
        try:
            opened, tokenizer = open_store(tmp_path / "b.arrow")
        except DataError as error:
            told.append(str(error))
            continue
        harmless += 1
        assert tokenizer == PROTEIN
        assert opened.letters == data.letters
        assert opened.sequences.fingerprint() == data.sequences.fingerprint()
        assert list(opened.descriptions) == list(data.descriptions)
        for ours, theirs in zip(opened.dropped, data.dropped, strict=True):
            assert ours.tolist() == theirs.tolist()
    assert all("b.arrow" in message and "data tokenize" in message for message in told)
    assert len(told) > harmless / 2 > 0, "padding and defaults mean nothing, all else does"


@pytest.mark.parametrize("kept", [8, 100, 0.5, 0.9, -1])
def test_a_store_that_was_cut_short_is_told(tmp_path, kept):
    write_store(tmp_path / "a.arrow", read(write(tmp_path / "a.fa", ["MKV", "LW"])), PROTEIN)
    content = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(
        content[: int(kept * len(content)) if 0 < kept < 1 else kept]
    )
    with pytest.raises(DataError, match=r"a\.arrow: cannot be read as a tokenized store"):
        open_store(tmp_path / "a.arrow")


def test_a_link_to_a_store_stays_a_link(tmp_path):
    (tmp_path / "link.arrow").symlink_to(tmp_path / "real.arrow")
    write_store(tmp_path / "link.arrow", read(write(tmp_path / "a.fa", ["MKV"])), PROTEIN)
    assert (tmp_path / "link.arrow").is_symlink()
    assert is_store(tmp_path / "real.arrow")
