"""Records column by column against records one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenized_records import GAPPED, PROTEIN, read, write

from seqtrain.data.fasta import Header, read_fasta
from seqtrain.data.tokenized import Headers, limit, tokenize_fasta
from seqtrain.errors import ConfigError, FastaError


@given(files=st.lists(st.lists(GAPPED, min_size=1, max_size=6), min_size=1, max_size=3))
def test_columns_hold_what_the_records_do(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("files")
    paths = [write(folder / f"{n}.fa", file, f"f{n}_") for n, file in enumerate(files)]
    records = read_fasta(paths)
    in_memory, in_files = read(*paths), read(*paths, folder=folder)
    assert sorted(map(str, folder.iterdir())) == sorted(paths), "temporary files have no name"
    for data in (in_memory, in_files):
        headers = [Header(r.id, r.description, r.source, r.line, r.index) for r in records]
        assert list(data.headers()) == [data.header(i) for i in range(len(data))] == headers
        assert list(data.sequences.ids) == [r.id for r in records]
        for i, record in enumerate(records):
            np.testing.assert_array_equal(
                data.sequences.residues(i), PROTEIN.encode(record.sequence)
            )
            np.testing.assert_array_equal(data.kept(i), PROTEIN.keep(record.sequence))
        text = "".join(r.sequence for r in records)
        assert data.letters == {letter: text.count(letter) for letter in set(text)}


@given(sequences=st.lists(GAPPED, min_size=1, max_size=8), data=st.data())
def test_taken_records_keep_all_their_columns(tmp_path_factory, sequences, data):
    whole = read(write(tmp_path_factory.mktemp("files") / "a.fa", sequences))
    chosen = data.draw(st.lists(st.integers(0, len(sequences) - 1), max_size=9))
    part = whole.take(np.array(chosen, int))
    assert list(part.headers()) == [whole.header(i) for i in chosen]
    for new, old in enumerate(chosen):
        np.testing.assert_array_equal(part.sequences.residues(new), whole.sequences.residues(old))
        np.testing.assert_array_equal(part.kept(new), whole.kept(old))


def test_headers_of_several_pieces_are_one_list(tmp_path):
    pieces = [
        read(write(tmp_path / f"{n}.fa", ["MK"] * size, f"f{n}_"))
        for n, size in enumerate((2, 1, 3))
    ]
    headers = Headers(pieces)
    one_by_one = [header for piece in pieces for header in piece.headers()]
    assert len(headers) == 6
    assert list(headers) == [headers[i] for i in range(6)] == headers[:] == one_by_one
    assert headers[-1] == one_by_one[-1]
    assert headers[1:3] == one_by_one[1:3]
    with pytest.raises(IndexError):
        headers[6]


@given(sequences=st.lists(GAPPED, min_size=1, max_size=8), longest=st.integers(1, 12))
def test_over_long_records_are_cut_left_out_or_told(tmp_path_factory, sequences, longest):
    path = write(tmp_path_factory.mktemp("files") / "a.fa", sequences)
    lengths = [len(PROTEIN.encode(s)) for s in sequences]
    long = [f"r{i}" for i, length in enumerate(lengths) if length > longest]
    cut = read(path, max_length=longest, overlong="truncate")
    assert list(cut.truncated) == long
    assert cut.sequences.lengths.tolist() == [min(length, longest) for length in lengths]
    assert [len(cut.kept(i)) for i in range(len(cut))] == list(map(len, sequences))
    if long:
        with pytest.raises(FastaError, match=rf"{long[0]}.*more than data\.max_length={longest}"):
            read(path, max_length=longest)
    else:
        whole = read(path).sequences.fingerprint()
        assert read(path, max_length=longest).sequences.fingerprint() == whole
    if len(long) == len(sequences):
        with pytest.raises(FastaError, match=r"No record is left\."):
            read(path, max_length=longest, overlong="skip")
    else:
        left = read(path, max_length=longest, overlong="skip")
        assert [reject.id for reject in left.skipped] == long
        assert list(left.sequences.ids) == [
            f"r{i}" for i, length in enumerate(lengths) if length <= longest
        ]


def test_what_is_to_happen_to_over_long_records_has_to_be_known(tmp_path):
    data = read(write(tmp_path / "a.fa", ["MK"]))
    with pytest.raises(ConfigError, match=r"data\.overlong: expected one of error"):
        limit([data], 3, "cut")


def test_the_tokenizer_is_made_from_the_letters_of_all_files(tmp_path):
    paths = [write(tmp_path / "a.fa", ["MKA"], "a"), write(tmp_path / "b.fa", ["KL-"], "b")]
    seen = []

    def make(letters):
        seen.append(dict(letters))
        return PROTEIN

    assert tokenize_fasta(paths, make)[1] is PROTEIN
    assert seen == [{"M": 1, "K": 2, "A": 1, "L": 1, "-": 1}]
