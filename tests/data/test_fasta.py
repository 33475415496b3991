import bz2
import gzip
import io
import lzma
import os
import string
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from traced_memory import most_memory

from seqtrain.data.fasta import Record, Reject, read_fasta, reject_message, scan_fasta
from seqtrain.data.files import file_facts
from seqtrain.errors import FastaError

WRITERS = {"plain": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes, name: str = "train.fasta") -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


def message_of(*paths: str) -> str:
    with pytest.raises(FastaError) as caught:
        read_fasta(paths)
    return str(caught.value)


def rejects_of(*paths: str) -> list[Reject]:
    return [item for item in scan_fasta(paths) if isinstance(item, Reject)]


ids = st.text(alphabet=string.ascii_letters + string.digits + "|_.:-", min_size=1, max_size=20)
sequences = st.text(alphabet=string.ascii_uppercase + "*-.", min_size=1, max_size=200)


@given(
    records=st.lists(st.tuples(ids, sequences), min_size=1, max_size=8, unique_by=lambda r: r[0]),
    width=st.integers(1, 80),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    lower=st.booleans(),
    blank_lines=st.booleans(),
    last_newline=st.booleans(),
    mark=st.sampled_from(["", "\ufeff"]),
    writer=st.sampled_from(list(WRITERS)),
)
def test_wrapping_line_ends_case_and_compression_do_not_change_the_records(
    tmp_path_factory, records, width, newline, lower, blank_lines, last_newline, mark, writer
):
    lines = []
    for name, sequence in records:
        shown = sequence.lower() if lower else sequence
        lines += [
            f">{name} some words",
            *(shown[i : i + width] for i in range(0, len(shown), width)),
        ]
        lines += [""] * blank_lines
    text = mark + newline.join(lines) + newline * last_newline
    path = tmp_path_factory.mktemp("fasta") / "records"
    path.write_bytes(WRITERS[writer](text.encode()))
    found = read_fasta([path])
    assert [(r.id, r.sequence) for r in found] == records
    assert [r.index for r in found] == list(range(len(records)))
    assert all(r.source == str(path) and r.description == "some words" for r in found)
    assert [r.line for r in found] == [n for n, s in enumerate(lines, 1) if s.startswith(">")]


def test_ids_and_lines_continue_over_several_files(write):
    first = write("\n>a first one\nACGT\n\n>b\nAC\nGT\n", "a.fa")
    second = write(">c\tlabel=x\nTT  TT\tAA\n", "b.fa")
    assert read_fasta([first, second]) == [
        Record("a", "first one", "ACGT", first, 2, 0),
        Record("b", "", "ACGT", first, 5, 1),
        Record("c", "label=x", "TTTTAA", second, 1, 0),
    ]


def test_scanning_holds_no_more_than_it_was_asked_for(write):
    stream = scan_fasta([write(">a\nAC\n>b\nGT\nstop here\0")])
    assert next(stream).id == "a"


@pytest.mark.parametrize("packed", [bytes, gzip.compress])
def test_standard_input_is_read_and_left_open(monkeypatch, packed):
    buffer = io.BytesIO(packed(b">a\nACGT\n"))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=buffer))
    assert [(r.id, r.source) for r in read_fasta(["-"])] == [("a", "-")]
    assert not buffer.closed


def test_header_with_a_space_after_the_arrow_still_has_its_id(write):
    assert read_fasta([write("> P12345 desc\nMK\n")])[0][:2] == ("P12345", "desc")


# What makes a whole file unusable.


def test_missing_file_names_it_and_the_nearest_one(write, tmp_path):
    write(">a\nAC\n", "train.fasta")
    message = message_of(str(tmp_path / "tain.fasta"))
    assert message.startswith(f"{tmp_path}/tain.fasta: no such file.")
    assert f"Did you mean {tmp_path}/train.fasta?" in message


def test_missing_folder_is_a_missing_file():
    assert message_of("/no/such/place.fasta") == "/no/such/place.fasta: no such file."


def test_folder_is_no_file(tmp_path):
    assert message_of(str(tmp_path)) == f"{tmp_path}: is a folder, expected a file."


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_says_so(write):
    path = write(">a\nAC\n")
    os.chmod(path, 0)
    assert "Permission denied" in message_of(path)


def test_refused_open_says_why(write, monkeypatch):
    path = write(">a\nAC\n")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    assert message_of(path) == f"{path}: cannot be read: Permission denied."


@pytest.mark.parametrize("content", ["", "\n \n", gzip.compress(b"", mtime=0)])
def test_empty_file_is_refused(write, content):
    path = write(content)
    assert message_of(path) == f"{path}: is empty, expected FASTA records."


def test_table_in_place_of_fasta_shows_the_line(write):
    path = write("\nid\tlabel\n1\t2\n")
    message = message_of(path)
    assert message.startswith(f"{path}: not FASTA. Expected line 2 to be a header")
    assert r"'id\tlabel'" in message


def test_fastq_is_recognised(write):
    assert "found FASTQ" in message_of(write("@read1\nACGT\n+\nIIII\n"))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not UTF-8"),
        (b"junk\0\0\x01", "line 1 holds binary data"),
        (b">a\nACGT\n>b\nAC\0GT\n", "line 4 holds binary data"),
        (b"PK\x03\x04rest", "a zip archive"),
        (b"\x28\xb5\x2f\xfdrest", "zstd"),
        (">a\nAC\n".encode("utf-16"), "UTF-16"),
        (b">a\nAC\n>b caf\xe9\nGT\n", "line 3 holds bytes that are not UTF-8"),
    ],
)
def test_binary_and_foreign_bytes_are_named(write, content, found):
    path = write(content)
    message = message_of(path)
    assert message.startswith(f"{path}: ")
    assert found in message


@pytest.mark.parametrize("packer", ["gz", "bz2", "xz"])
def test_compressed_file_that_was_cut_short_is_refused(write, packer):
    whole = WRITERS[packer](os.urandom(4000).hex().encode().join([b">a\n", b"\n"]))
    path = write(whole[:-20])
    assert "cut short; copy or download it again" in message_of(path)


@pytest.mark.parametrize("packer", ["gz", "bz2", "xz"])
def test_compressed_file_that_was_damaged_is_refused(write, packer):
    whole = bytearray(WRITERS[packer](b">a\n" + os.urandom(4000).hex().encode()))
    whole[len(whole) // 2] ^= 0xFF
    path = write(bytes(whole))
    assert message_of(path).startswith(f"{path}: ")


def test_same_file_twice_is_refused_before_it_is_read(write, tmp_path):
    path = write(">a\nAC\n")
    again = str(tmp_path / ".." / tmp_path.name / "train.fasta")
    assert "is given twice" in message_of(path, again)
    assert "standard input: is given twice" in message_of("-", "-")


# What makes one record unusable.


@pytest.mark.parametrize(
    ("content", "name", "reason", "line"),
    [
        (">a\nAC\n>\nGT\n", "", "the id is blank", 3),
        (">a\nAC\n>   \nGT\n", "", "the id is blank", 3),
        (">a\nAC\n>b\n>c\nGT\n", "b", "the sequence is empty", 3),
        (">a\nAC\n>b\n\n  \n", "b", "the sequence is empty", 3),
        (">a\nAC\n>b\nGT\nA1T\n", "b", "residue 4: '1' is not a letter", 3),
        (">a\nAC\n>b\nGT>c\nAT\n", "b", "residue 3: '>' is not a letter", 3),
        (">a\nAC\n>b\nGÉT\n", "b", "residue 2: 'É' is not a letter", 3),
        (">a\nAC\n>b\ngßt\n", "b", "residue 2: 'ß' is not a letter", 3),
        (">a\nAC\n>a other\nGT\n", "a", "the id was used before, on line 1;", 3),
    ],
)
def test_bad_record_is_rejected_with_its_place(write, content, name, reason, line):
    path = write(content)
    (reject,) = rejects_of(path)
    assert (reject.id, reject.source, reject.line, reject.index) == (name, path, line, 1)
    assert reject.reason.startswith(reason)
    assert message_of(path).startswith(f"{path}: record {name!r} (2nd, line {line}): {reason}")


def test_two_blank_ids_are_blank_and_not_duplicates(write):
    assert [r.reason[:15] for r in rejects_of(write(">\nAC\n>\nAC\n"))] == ["the id is blank"] * 2


def test_duplicate_id_in_another_file_names_both_places(write):
    first = write(">x\nAA\n>a\nAC\n", "a.fa")
    second = write(">a\nGT\n", "b.fa")
    (reject,) = rejects_of(first, second)
    assert (reject.source, reject.line) == (second, 1)
    assert f"on line 3 of {first}" in reject.reason


def test_duplicate_sequences_are_no_error(write):
    assert len(read_fasta([write(">a\nAC\n>b\nAC\n")])) == 2


def test_good_records_between_bad_ones_are_kept(write):
    path = write(">a\nAC\n>\nGT\n>b\nGG\n")
    assert [item.id for item in scan_fasta([path]) if isinstance(item, Record)] == ["a", "b"]


def test_one_error_lists_the_bad_records_of_every_file(write):
    first = write(">a\nAC\n>b\n>c\n", "a.fa")
    second = write("".join(f">r{n}\nAC{n}\n" for n in range(25)), "b.fa")
    lines = message_of(first, second).splitlines()
    assert lines[0] == f"{first}: 2 records cannot be used:"
    assert lines[3] == f"{second}: 25 records cannot be used:"
    assert lines[4] == (
        "  record 'r0' (1st, line 1): residue 3: '0' is not a letter; remove or replace it."
    )
    assert [line.split("(")[1].split(",")[0] for line in lines[4:14]] == (
        ["1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th", "9th", "10th"]
    )
    assert lines[14:] == ["  and 15 more."]


@pytest.mark.parametrize(
    ("index", "word"),
    [(0, "1st"), (10, "11th"), (11, "12th"), (12, "13th"), (20, "21st"), (110, "111th")],
)
def test_places_are_counted_in_words(index, word):
    assert f"({word}, line 7)" in reject_message([Reject("a", "why", "-", 7, index)])


def test_messages_about_standard_input_call_it_so():
    assert reject_message([Reject("a", "why", "-", 1, 0)]).startswith("standard input: record 'a'")


def test_file_facts_tell_size_and_digest(write):
    path = write("abc")
    # The SHA-256 test vector of FIPS 180-2 for "abc".
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_facts(path) == {"path": path, "bytes": 3, "sha256": digest}
    assert file_facts("-") == {"path": "-"}
    assert file_facts("/dev/null") == {"path": "/dev/null"}


def test_real_files_agree_with_a_line_by_line_reading(real_data):
    path = real_data / "amplify_amp" / "train.fasta"
    lines = path.read_text().split("\n")
    records = read_fasta([path])
    assert len(records) == sum(line.startswith(">") for line in lines)
    assert all(lines[r.line - 1] == f">{r.id}" for r in records)
    assert sum(len(r.sequence) for r in records) == sum(
        len(line) for line in lines if not line.startswith(">")
    )


class TestBounds:
    """Small compressed files cannot fill the memory or keep the reader busy without end."""

    def test_zeros_are_refused_at_the_first_of_them(self, write):
        zeros = write(gzip.compress(bytes(50_000_000)))
        assert "line 1 holds binary data" in message_of(zeros)
        assert most_memory(lambda: message_of(zeros)) < 20_000_000

    def test_a_line_without_an_end_is_refused(self, write, monkeypatch):
        monkeypatch.setattr("seqtrain.data.files.MAX_LINE", 3_000_000)
        endless = write(gzip.compress(b">a\n" + b"A" * 50_000_000))
        assert "line 2 has more than 3,000,000 characters" in message_of(endless)
        assert most_memory(lambda: message_of(endless)) < 20_000_000

    def test_a_long_line_within_the_bound_is_read(self, write):
        sequence = "ACGT" * 600_000
        assert read_fasta([write(f">a\n{sequence}\n>b\nAC")])[0].sequence == sequence

    def test_empty_lines_without_end_are_refused(self, write):
        said = message_of(write(gzip.compress(b">a\nAC\n" + b"\n" * 30_000_000)))
        assert "more than 1,000,000 empty lines in a row, up to line 1,000,003" in said

    def test_a_record_without_an_end_is_refused(self, write, monkeypatch):
        monkeypatch.setattr("seqtrain.data.fasta.MAX_RESIDUES", 500_000)
        said = message_of(write(">a\nACGT\n>b\n" + ("ACGT" * 15 + "\n") * 10_000))
        assert "the record on line 3 has more than 500,000 letters" in said

    def test_an_id_as_long_as_a_sequence_is_refused_and_not_kept(self, write):
        long = ["M" * 1_000_000, "M" * 1_000_000]
        rejects = rejects_of(write("".join(f">{name}\nACGT\n" for name in long)))
        assert [reject.reason for reject in rejects] == [
            "the id has 1,000,000 characters, of at most 1,000; put a blank after the id"
        ] * 2
        assert all(len(reject.id) < 50 for reject in rejects)
        assert read_fasta([write(f">{'M' * 1000}\nACGT\n")])[0].id == "M" * 1000
