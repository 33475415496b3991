"""Runs and bundles that an earlier version made still open, evaluate, resume and export.

``stored/runs_0.1.0.tar.xz`` was made at commit b803172 on one thread of a CPU: for each task a
complete run (``runs``), the same training interrupted in its third epoch (``halves``), and a
bundle of the first.
"""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from seqtrain.cli.main import app

STORED = Path(__file__).parent / "stored" / "runs_0.1.0.tar.xz"
TASKS = (
    "classification",
    "multilabel",
    "regression",
    "residue_classification",
    "residue_regression",
    "mlm",
)
Run = Callable[..., Any]


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stored folder, unpacked and entered: its runs name their files relative to it."""
    with tarfile.open(STORED) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def seqtrain(stored: Path) -> Run:
    """Run the command line in the stored folder; it must succeed."""

    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        return result

    return run


def labels(task: str) -> list[str]:
    """The options that name a task's labels."""
    ending = "fasta" if task == "residue_classification" else "tsv"
    return [] if task == "mlm" else ["--labels", f"{task}.{ending}"]


def scores(path: str) -> dict[str, Any]:
    """Values of the test metrics in a summary."""
    metrics = json.loads(Path(path).read_text())["test"]["metrics"]
    return {name: found["value"] for name, found in metrics.items()}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("form", ["runs/{}", "{}.bundle.zip"])
def test_evaluation_gives_the_stored_metrics(
    stored: Path, seqtrain: Run, task: str, form: str
) -> None:
    seqtrain("eval", form.format(task), "test.fasta", *labels(task), "--json", "found.json")
    found = json.loads(Path("found.json").read_text())["metrics"]
    expected = scores(f"runs/{task}/summary.json")
    assert {name: metric["value"] for name, metric in found.items()} == pytest.approx(
        expected, abs=1e-5
    )


@pytest.mark.parametrize("task", TASKS)
def test_an_interrupted_run_ends_as_the_stored_one_did(
    stored: Path, seqtrain: Run, task: str
) -> None:
    seqtrain("train", "--resume", "-o", f"halves/{task}", "-q")
    found = json.loads(Path(f"halves/{task}/summary.json").read_text())
    expected = json.loads(Path(f"runs/{task}/summary.json").read_text())
    for key in ("epochs", "steps", "best_epoch", "num_parameters"):
        assert found[key] == expected[key]
    assert scores(f"halves/{task}/summary.json") == pytest.approx(
        scores(f"runs/{task}/summary.json"), abs=1e-4
    )


@pytest.mark.parametrize("task", TASKS)
def test_a_stored_run_is_exported_with_the_same_results(
    stored: Path, seqtrain: Run, task: str
) -> None:
    result = seqtrain(
        "export", f"runs/{task}", "--format", "bundle", "-o", "new.zip", "--check", "test.fasta"
    )
    assert "passed" in result.stdout
    for name, model in (("old", f"{task}.bundle.zip"), ("new", "new.zip")):
        seqtrain("predict", model, "test.fasta", "-o", f"{name}.jsonl")
    old, new = (
        [json.loads(line) for line in Path(f"{name}.jsonl").read_text().splitlines()]
        for name in ("old", "new")
    )
    assert len(old) == len(new) > 0
    for a, b in zip(old, new, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            if isinstance(value, float | list):
                np.testing.assert_allclose(
                    np.array(b[key], float), np.array(value, float), atol=1e-6
                )
            elif key != "model":
                assert b[key] == value
