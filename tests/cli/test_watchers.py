"""Watchers of a training can be left out, and none of them ends it."""

import json
from pathlib import Path

import pytest
from small_program import SMALL, write_records
from typer.testing import CliRunner, Result

from seqtrain.board import TensorBoard
from seqtrain.cli.main import app
from seqtrain.training.events import StepEvent


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_records(folder)
    return folder


def train(files: Path, run: Path, *options: str) -> Result:
    data = ["--train", str(files / "train.fasta"), "--labels", str(files / "labels.tsv")]
    settings = [*SMALL, "trainer.max_epochs=1"]
    return CliRunner().invoke(app, ["train", *data, *settings, *options, "-o", str(run)])


def test_tensorboard_can_be_left_out(files: Path, tmp_path: Path) -> None:
    done = train(files, tmp_path / "run", "logger=none")
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert "--logdir" not in done.output
    assert "logger:\n  name: none\n" in (tmp_path / "run" / "config.yaml").read_text()
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_size > 0


def test_an_error_of_tensorboard_is_told_and_the_training_ends_well(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: TensorBoard, event: StepEvent) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorBoard, "on_step", fail)
    done = train(files, tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("warning: TensorBoard is left out from here on") == 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["epochs"] == 1


def test_a_logger_that_there_is_not_is_refused(files: Path, tmp_path: Path) -> None:
    done = train(files, tmp_path / "run", "logger=wandb")
    assert done.exit_code == 1
