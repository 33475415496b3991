"""The line on a terminal: there when somebody looks, and right about what is left."""

import gzip
import io
import re
from pathlib import Path

import pytest
from tiny_runs import random_fasta

from seqtrain.cli import progress as room
from seqtrain.cli.progress import Progress
from seqtrain.data.fasta import scan_fasta


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    return random_fasta(tmp_path / "x.fasta", [500] * 40)


def run_through(fasta: Path, stream: io.StringIO, quiet: bool = False) -> Progress:
    progress = Progress([str(fasta)], quiet, stream)
    for _ in progress.count(progress.watch(scan_fasta([fasta]))):
        pass
    return progress


def test_rows_rate_and_share_are_shown_and_wiped(
    fasta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "SECONDS", -1)
    stream = Terminal()
    run_through(fasta, stream)
    said = stream.getvalue()
    assert re.search(r"\x1b\[K20 records  [\d,]+/s  5[012]%  about 0 min 00 s left", said)
    assert said.endswith("\r\x1b[K")
    assert "\n" not in said


def test_nothing_is_said_to_a_pipe_or_when_quiet(
    fasta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "SECONDS", -1)
    pipe, quiet = io.StringIO(), Terminal()
    assert run_through(fasta, pipe).rows == 40
    run_through(fasta, quiet, quiet=True)
    assert (pipe.getvalue(), quiet.getvalue()) == ("", "")


def test_the_time_left_follows_from_the_share_of_the_file(
    fasta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Progress([str(fasta)], stream=Terminal())
    entries = progress.watch(scan_fasta([fasta]))
    for _ in range(10):
        next(entries)
    progress.rows = 10
    monkeypatch.setattr("time.monotonic", lambda: progress.began + 100)
    assert "10 records  0/s  2" in progress.line()
    assert "about 4 min 5" in progress.line() or "about 5 min 0" in progress.line()


def test_of_a_compressed_file_or_a_pipe_nothing_is_left_to_say(fasta: Path, tmp_path: Path) -> None:
    packed = tmp_path / "x.fasta.gz"
    packed.write_bytes(gzip.compress(fasta.read_bytes()))
    for path in (packed, Path("-")):
        progress = Progress([str(fasta), str(path)], stream=Terminal())
        progress.rows = progress.read = 5
        assert "left" not in progress.line()
