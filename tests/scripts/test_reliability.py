"""The kill harness and the fuzzer run, and find nothing in a few seconds."""

import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def said_by(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_killed_processes_lose_nothing() -> None:
    said = said_by("kill_training.py", "--kills", "20", "--jobs", "tokenize")
    assert "data tokenize: 2 kills, 0 wrong" in said


def test_changed_files_are_read_or_refused() -> None:
    said = said_by("fuzz_readers.py", "--seconds", "2", "--readers", "fasta", "sums")
    assert "0 that are no one-line error" in said
