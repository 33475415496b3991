"""`train --resume`: what may be given, what is refused, and that it is said what becomes of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_program import SMALL, write_records
from typer.testing import CliRunner

from seqtrain.cli.main import app
from seqtrain.cli.resume import given_settings
from seqtrain.compose import load_config
from seqtrain.errors import CheckpointError
from seqtrain.training.checkpoint import load_run, read_run
from seqtrain.training.run_dir import RunDir
from seqtrain.training.sums import write_listed

Made = tuple[Path, Path]


def train(run: Path, *arguments: str | Path) -> Any:
    command = ["train", "-o", run, *arguments]
    said = CliRunner().invoke(app, [*map(str, command)], catch_exceptions=False)
    assert said.exit_code == 0, said.output
    return said


def files(folder: Path) -> list[str]:
    return ["--train", str(folder / "train.fasta"), "--labels", str(folder / "labels.tsv")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Files, and a finished run of two epochs on them."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "data").mkdir()
    write_records(folder / "data", 36)
    train(folder / "run", *files(folder / "data"), *SMALL, "-q")
    return folder / "data", folder / "run"


@pytest.fixture
def copied(finished: Made, tmp_path: Path) -> Made:
    """A copy of the run whose files now lie in another folder; the old paths are gone."""
    data, run = finished
    shutil.copytree(data, tmp_path / "moved")
    shutil.copytree(run, tmp_path / "run")
    for name in ("config.yaml", "data.json"):
        path = tmp_path / "run" / name
        write_listed(path, path.read_text().replace(str(data), str(tmp_path / "gone")))
    return tmp_path / "moved", tmp_path / "run"


def steps(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "step"]


def test_a_finished_run_trains_on_with_the_same_files_from_another_folder(copied: Made) -> None:
    moved, run = copied
    before = steps(run)
    said = train(run, *files(moved), "trainer.max_epochs=4", "--resume")
    assert "warning: trains on after epoch 2, up to 4 epochs in place of 2" in said.stderr
    assert "epoch 3/4" in said.stderr
    config, report = read_run(RunDir(run))
    assert (config.trainer.max_epochs, config.trainer.patience) == (4, 5)
    assert config.data.train == [str(moved / "train.fasta")]
    assert report["files"]["labels"][0]["path"] == str(moved / "labels.tsv")
    assert any("trains on" in warning for warning in report["warnings"])
    assert report["choices"], "what was chosen in the beginning stays known"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["epochs"] == 4
    after = steps(run)
    assert after[: len(before)] == before
    assert after[len(before)]["lr"] > before[-1]["lr"]
    # From here on it is a run of four epochs like any other, and complete.
    with pytest.raises(CheckpointError, match=r"complete.*above 4"):
        train(run, "--resume")


def test_the_schedule_of_more_epochs_is_that_of_a_run_begun_with_them(
    finished: Made, tmp_path: Path
) -> None:
    data, run = finished
    shutil.copytree(run, tmp_path / "run")
    train(tmp_path / "run", "trainer.max_epochs=3", "--resume", "-q")
    train(tmp_path / "whole", *files(data), *SMALL, "trainer.max_epochs=3", "-q")
    ours, theirs = steps(tmp_path / "run"), steps(tmp_path / "whole")
    last = len(steps(run))
    assert len(ours) == len(theirs) > last
    assert [s["lr"] for s in ours[last:]] == [s["lr"] for s in theirs[last:]]


def test_files_that_are_gone_are_named_with_the_option_for_their_new_place(copied: Made) -> None:
    moved, run = copied
    with pytest.raises(CheckpointError, match=r"gone/train.fasta.*--train.*same"):
        train(run, "trainer.max_epochs=4", "--resume")
    with pytest.raises(CheckpointError, match=r"gone/labels.tsv.*--labels"):
        train(run, *files(moved)[:2], "trainer.max_epochs=4", "--resume")


def test_other_contents_are_refused_by_the_name_of_the_file(copied: Made) -> None:
    moved, run = copied
    fasta = moved / "train.fasta"
    header, rest = fasta.read_text().split("\n", 1)
    fasta.write_text(f"{header}\n{'A' if rest[0] == 'C' else 'C'}{rest[1:]}")
    saved = (run / "config.yaml").read_text()
    with pytest.raises(CheckpointError, match=r"changed; the contents of .*moved/train.fasta"):
        train(run, *files(moved), "trainer.max_epochs=4", "--resume")
    assert (run / "config.yaml").read_text() == saved
    assert (run / "summary.json").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["optim.lr=0.5"], "optim.lr=0.5 (the run has 0.002)"),
        (["encoder=transformer"], "encoder.name=transformer (the run has cnn)"),
        (["norm=layer"], "norm.name=layer (the run has masked_batch)"),
        (["trainer.seed=3", "trainer.max_epochs=9"], "trainer.seed=3 (the run has 0)"),
    ],
)
def test_only_settings_that_were_given_are_refused(
    finished: Made, given: list[str], said: str
) -> None:
    data, run = finished
    for named in ([], files(data)):
        with pytest.raises(CheckpointError) as error:
            train(run, *named, *given, "--resume")
        assert f"you gave others: {said}. Leave" in str(error.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["trainer.max_epochs=1"], "can only raise it"),
        (["trainer.patience=2"], "can only raise it"),
        (["trainer.max_epochs=2"], "complete"),
        (list(SMALL), "complete"),
    ],
)
def test_a_finished_run_is_not_trained_for_less(
    finished: Made, given: list[str], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        train(finished[1], *given, "--resume")


def test_a_run_that_lost_patience_asks_for_more_of_it(finished: Made, tmp_path: Path) -> None:
    data, _ = finished
    run = tmp_path / "run"
    options = ["trainer.monitor=accuracy", "trainer.patience=1", "optim.lr=1e-9"]
    said = train(run, *files(data), *SMALL, *options, "trainer.max_epochs=3", "-q")
    stopped = json.loads((run / "summary.json").read_text())["epochs"]
    assert stopped < 3
    words = f"stopped early: after epoch {stopped} of at most 3, because accuracy was best in"
    assert words in said.stderr
    with pytest.raises(CheckpointError, match=r"trainer.patience=1. To train on, give a larger"):
        train(run, "trainer.max_epochs=4", "--resume")
    assert read_run(RunDir(run))[0].trainer.max_epochs == 3
    train(run, "trainer.max_epochs=4", "trainer.patience=0", "--resume", "-q")
    assert json.loads((run / "summary.json").read_text())["epochs"] == 4


def test_another_number_of_threads_is_said(finished: Made, tmp_path: Path) -> None:
    _, run = finished
    shutil.copytree(run, tmp_path / "run")
    before = torch.get_num_threads()
    try:
        options = ["trainer.num_threads=2", "trainer.max_epochs=3"]
        said = train(tmp_path / "run", *options, "--resume")
    finally:
        torch.set_num_threads(before)
    assert "warning: the run began on 1 CPU thread and continues on 2 CPU threads" in said.stderr
    assert "trainer.num_threads=1" in said.stderr
    assert load_run(tmp_path / "run", "last").state["threads"] == 2


def test_what_a_user_gave_is_told_from_what_comes_along() -> None:
    plain = load_config()
    overrides = ["encoder=transformer", "encoder.dropout=0.1", "trainer.seed=0"]
    given = given_settings(load_config(overrides=overrides), plain, overrides)
    assert given == {"encoder.name": "transformer", "encoder.dropout": 0.1, "trainer.seed": 0}
    assert given_settings(plain, load_config(), []) == {}
