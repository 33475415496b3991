"""`seqtrain info` and `eval`: what they say of a model, and advice that can be followed."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import random_fasta, tiny_run
from typer.testing import CliRunner

from seqtrain.cli.main import app
from seqtrain.cli.train import _remove_run
from seqtrain.export.bundle import write_bundle
from seqtrain.training.calibration import Calibration
from seqtrain.training.run_dir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A calibrated run that never ended."""
    folder = tiny_run(tmp_path / "run")
    calibration = Calibration((2.5,), "valid", 10, 0.2, 0.1)
    (folder / "calibration.json").write_text(calibration.to_json())
    return folder


def say(*arguments: str | Path) -> str:
    command = list(map(str, arguments))
    said = CliRunner().invoke(app, command, catch_exceptions=False, env={"COLUMNS": "200"})
    assert said.exit_code == 0, said.output
    return str(said.stdout)


def test_an_unfinished_run_is_gone_on_with_and_its_bundle_exported_again(
    run: Path, tmp_path: Path
) -> None:
    assert f"continue with seqtrain train --resume -o {run}" in say("info", run)
    for name in ("b", "b.zip"):
        write_bundle(run, tmp_path / name)
        said = say("info", tmp_path / name)
        assert "finish the run and export it again" in said
        assert "--resume" not in said
    (run / "summary.json").write_text('{"epochs": 1}')
    assert "not complete" not in say("info", run)


def test_what_is_to_be_known_of_a_run_is_said_once(run: Path) -> None:
    for folder in (run, run / "checkpoints" / "best"):
        (folder / "SHA256SUMS").unlink()
    said = CliRunner().invoke(app, ["info", str(run)], catch_exceptions=False)
    assert said.stderr.count("warning: ") == 1
    assert "damage to its files cannot be found" in said.stderr


def test_what_probabilities_and_lengths_are_is_said(run: Path) -> None:
    said = say("info", run)
    assert "calibrated by temperature scaling (T = 2.5, valid part)" in said
    assert "4 to 90" in said
    assert json.loads(say("info", run, "--json"))["calibration"]["temperature"] == [2.5]
    (run / "calibration.json").unlink()
    assert "uncalibrated" in say("info", run)
    assert json.loads(say("info", run, "--json"))["calibration"] is None


def test_eval_scores_the_probabilities_that_predict_gives(run: Path, tmp_path: Path) -> None:
    fasta = random_fasta(tmp_path / "x.fasta", [5, 9, 30, 2, 44, 17], label="a")
    scores = {}
    for name, options in {"calibrated": [], "plain": ["--uncalibrated"]}.items():
        table, numbers = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.json"
        said = say("eval", run, fasta, "-o", table, "--json", numbers, *options)
        scores[name] = json.loads(numbers.read_text())
        rows = [json.loads(line) for line in table.read_text().splitlines()]
        of_target = np.array([row["prob_a"] for row in rows])
        found = scores[name]
        assert found["metrics"]["loss"]["value"] == pytest.approx(
            -np.log(of_target).mean(), rel=1e-5
        )
        assert f"probabilities: {found['probabilities']}; expected calibration error" in said
    assert scores["plain"]["probabilities"] == "uncalibrated"
    assert "T = 2.5" in scores["calibrated"]["probabilities"]
    assert scores["plain"]["calibration_error"] != scores["calibrated"]["calibration_error"]
    accuracy = [found["metrics"]["accuracy"] for found in scores.values()]
    assert accuracy[0] == accuracy[1]


def test_a_run_that_is_overwritten_leaves_no_calibration_behind(run: Path) -> None:
    """Else the weights of an interrupted new run would be read out by the old temperature."""
    _remove_run(RunDir(run))
    assert not (run / "calibration.json").exists()
