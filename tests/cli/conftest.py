"""A small data set, a run trained on it, and the installed program."""

import os
import subprocess
from pathlib import Path

import pytest
from forked_program import run_forked
from small_program import SMALL, Program, command, write_records


@pytest.fixture(scope="session")
def program() -> Program:
    """Runs the program in a process of its own."""

    def run(
        *arguments: str | Path, cwd: Path | None = None, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        if arguments[0] != "export":
            return run_forked(arguments, cwd=cwd, stdin=stdin, env=environment)
        # A fork has the tests' checks of shapes, which are in the way where a program is traced.
        return subprocess.run(
            command(*arguments),
            cwd=cwd,
            input=stdin,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small data set."""
    folder = tmp_path_factory.mktemp("files")
    write_records(folder)
    return folder


@pytest.fixture(scope="session")
def train_options(files: Path) -> list[str]:
    """What to say to train on the small data set."""
    return [
        "--train",
        str(files / "train.fasta"),
        "--test",
        str(files / "test.fasta"),
        "--labels",
        str(files / "labels.tsv"),
        *SMALL,
    ]


@pytest.fixture(scope="session")
def run_dir(
    tmp_path_factory: pytest.TempPathFactory, program: Program, train_options: list[str]
) -> Path:
    """A finished run; tests read it and change nothing."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = program("train", *train_options, "-o", folder)
    assert done.returncode == 0, done.stderr
    return folder
