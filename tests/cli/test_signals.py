"""Ctrl-C, SIGTERM and a closed pipe end the program with a message and no traceback."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_program import SMALL, command, write_records
from tiny_runs import random_fasta, tiny_run
from typer.testing import CliRunner

from seqtrain.cli.main import app
from seqtrain.cli.signals import Interrupts

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Gone(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def interrupts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Interrupts]:
    """Listening; the handlers of before are put back."""

    def leave(status: int) -> None:
        raise Gone(status)

    monkeypatch.setattr(os, "_exit", leave)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    made = Interrupts()
    made.listen()
    yield made
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_interrupts_and_the_next_leaves_at_once(
    interrupts: Interrupts, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        send(number)
    for other in SIGNALS:
        with pytest.raises(Gone, match="130"):
            send(other)
    assert "stopped at once" in capfd.readouterr().err


def test_after_the_end_any_signal_leaves_at_once(interrupts: Interrupts) -> None:
    interrupts.leave()
    with pytest.raises(Gone, match="130"):
        send(signal.SIGINT)


def train(run: Path, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["train", "-o", str(run), *arguments], catch_exceptions=False)


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize(
    ("place", "resumable"),
    [("prepare_data", False), ("build_trainer", False), ("summarize", True)],
    ids=["reading", "before the first step", "scoring"],
)
def test_a_job_that_is_stopped_says_so_and_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, resumable: bool
) -> None:
    write_records(tmp_path, 30)
    files = ["--train", str(tmp_path / "train.fasta"), "--labels", str(tmp_path / "labels.tsv")]
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(f"seqtrain.pipeline.{place}", lambda *_, **__: send(signal.SIGTERM))
        said = train(run, *files, *SMALL)
    assert said.exit_code == 130
    assert "seqtrain: interrupted" in said.stderr
    assert ("--resume -o" in said.stderr) == resumable
    assert (run / "config.yaml").exists() == resumable
    if resumable:
        assert train(run, "--resume", "-q").exit_code == 0
        assert (run / "summary.json").exists()


@pytest.mark.usefixtures("interrupts")
def test_three_signals_in_training_leave_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first asks to stop after the step, the second stops, the third leaves."""
    write_records(tmp_path, 30)
    files = ["--train", str(tmp_path / "train.fasta"), "--labels", str(tmp_path / "labels.tsv")]
    steps = []

    def step(trainer: Any, batches: Any) -> None:
        steps.append(trainer)
        send(signal.SIGINT)
        assert trainer._stop
        try:
            send(signal.SIGINT)
        except KeyboardInterrupt:
            send(signal.SIGINT)

    monkeypatch.setattr("seqtrain.training.trainer.Trainer.step", step)
    with pytest.raises(Gone, match="130"):
        train(tmp_path / "run", *files, *SMALL)
    assert len(steps) == 1


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["predict", "eval"])
def test_a_closed_pipe_is_no_error(tmp_path: Path, verb: str) -> None:
    """As in ``seqtrain predict RUN x.fasta | head -1``."""
    run = tiny_run(tmp_path / "run")
    fasta = random_fasta(tmp_path / "x.fasta", [9] * 300, label="a")
    started = subprocess.Popen(
        command(verb, run, fasta, "-q"),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with started as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_stream_is_no_error(closed: str) -> None:
    command = [sys.executable, "-m", "seqtrain", "config", "list"]
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *command], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
