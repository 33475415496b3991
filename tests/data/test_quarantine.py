"""Quarantine: usable records are copied as they stand, the others are listed with the reason."""

import pytest
from prepared_data import Folder

from seqtrain.data.check import check_files
from seqtrain.data.quarantine import write_quarantine
from seqtrain.errors import FastaError

USABLE = (
    ">sp|Q0A1B2|FAKE1_MADEUP Made-up kinase OS=Nowhere GN=fk1\nMKWCHWAACDE\nFGHIKLM\n",
    ">lab7\tlabel=kinase  split=train\nmkppgppacdefg*\n",
    ">plain\nMKPPGPPACDEFG\n",
)
BAD = (">tr|A0A9X7|FAKE2_MADEUP Second one\nMKLV1LLAACDE\n", ">\nMKLV\n", ">empty\n")


@pytest.fixture(autouse=True)
def _in_folder(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.path)


def test_usable_records_keep_header_line_breaks_and_letter_case(folder: Folder) -> None:
    text = USABLE[0] + BAD[0] + USABLE[1] + BAD[1] + BAD[2] + USABLE[2]
    fasta = [folder.write("a.fasta", text.rstrip("\n")), folder.write("b.fasta", ">last\nACD\n")]
    found = check_files(fasta)
    clean, rejected = write_quarantine(found, fasta)
    assert clean.read_text() == "".join(USABLE) + ">last\nACD\n"
    rows = [line.split("\t") for line in rejected.read_text().splitlines()]
    assert [(row[0], row[2]) for row in rows[1:]] == [
        ("tr|A0A9X7|FAKE2_MADEUP", "4"),
        ("", "8"),
        ("empty", "10"),
    ]
    assert "'1' is not a letter" in rows[1][3]
    assert len(check_files([str(clean)]).records) + len(rows) - 1 == text.count(">") + 1


def test_standard_input_keeps_headers(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder.write("piped", USABLE[0] + BAD[0] + USABLE[2])
    with open(path) as stream:
        monkeypatch.setattr("sys.stdin", stream)
        found = check_files(["-"])
        clean, _ = write_quarantine(found, ["-"])
    assert clean.read_text() == (
        ">sp|Q0A1B2|FAKE1_MADEUP Made-up kinase OS=Nowhere GN=fk1\nMKWCHWAACDEFGHIKLM\n"
        ">plain\nMKPPGPPACDEFG\n"
    )


def test_nothing_is_replaced(folder: Folder) -> None:
    fasta = [folder.write("a.fasta", USABLE[0])]
    folder.write("a.rejects.tsv", "mine")
    with pytest.raises(FastaError, match=r"a\.rejects\.tsv: exists already"):
        write_quarantine(check_files(fasta), fasta)
    assert not (folder.path / "a.clean.fasta").exists()
    assert (folder.path / "a.rejects.tsv").read_text() == "mine"
