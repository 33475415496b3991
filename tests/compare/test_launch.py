"""Arms as jobs, through submitit's own local executor."""

from pathlib import Path

import pytest
from compare.comparisons import tiny_comparison

from seqtrain.compare.launch import launch_arms
from seqtrain.compare.run import open_comparison
from seqtrain.errors import ConfigError

pytest.importorskip("submitit", reason="submitit is not installed; pip install 'seqtrain[launch]'")


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_arms_run_as_processes_and_share_what_they_must(tmp_path: Path) -> None:
    comparison = tiny_comparison(tmp_path, ["batch", "none"])
    comparison.plans["cnn"].config.trainer.max_epochs = 1
    open_comparison(comparison, tmp_path / "out", resume=False)
    results = launch_arms(comparison, tmp_path / "out", "processes")
    assert [r.get("error") for r in results] == [None, None]
    assert [r["status"] for r in results] == ["ok", "ok"]
    assert results[0]["witness"] == results[1]["witness"]
    assert list((tmp_path / "out" / "jobs").glob("*_log.out"))


def test_without_slurm_the_launcher_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="--launcher slurm"):
        launch_arms(tiny_comparison(tmp_path, ["none"]), tmp_path / "out", "slurm")


def test_unknown_resources_are_refused_before_anything_runs(tmp_path: Path) -> None:
    comparison = tiny_comparison(tmp_path, ["none"])
    with pytest.raises(ConfigError, match="gpus"):
        launch_arms(comparison, tmp_path, "processes", resources={"gpus": 2})
