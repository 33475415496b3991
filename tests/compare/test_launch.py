"""Arms as jobs of a SLURM that is made of five scripts; as processes: tests/cli."""

import os
import re
import sys
from pathlib import Path

import pytest
from compare.comparisons import tiny_comparison

from seqtrain.compare.launch import launch_arms, read_resources
from seqtrain.compare.run import open_comparison
from seqtrain.errors import ConfigError

pytest.importorskip("submitit", reason="submitit is not installed; pip install 'seqtrain[launch]'")
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

# What submitit calls: sbatch starts a copy of the script (the script itself is moved), srun runs
# what follows its options, sacct says that a job runs until srun has ended.
SLURM = {
    "sbatch": """
cp "$1" {folder}/job.sh
export SLURM_JOB_ID=7 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0
export SLURM_JOB_NUM_NODES=1 SLURM_JOB_NODELIST=here
sh {folder}/job.sh >/dev/null 2>&1 &
echo Submitted batch job 7""",
    "srun": """
while [ "${{1#--}}" != "$1" ]; do
    case "$1" in --output|--error) shift ;; esac
    shift
done
"$@" >{folder}/job.log 2>&1
echo over >{folder}/over""",
    "sacct": """
echo 'JobID|State|NodeList'
if [ -e {folder}/over ]; then echo '7|COMPLETED|here'; else echo '7|RUNNING|here'; fi""",
    "scontrol": "echo here",
    "scancel": "",
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a SLURM of one node first in PATH; the script of a job is its job.sh."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in SLURM.items():
        (folder / name).write_text(f"#!/bin/sh{text.format(folder=folder)}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_slurm_gets_a_script_with_the_resources_of_the_config_and_runs_the_arm(
    slurm: Path, tmp_path: Path
) -> None:
    (tmp_path / "conf" / "launcher").mkdir(parents=True)
    own = tmp_path / "conf" / "launcher" / "slurm.yaml"
    own.write_text("timeout_min: 90\nmem_gb: 3\ncpus_per_task: 5\nslurm_partition: long\n")
    comparison = tiny_comparison(tmp_path, ["none"])
    comparison.plans["cnn"].config.trainer.max_epochs = 1
    open_comparison(comparison, tmp_path / "out", resume=False)
    resources = {**read_resources("slurm", tmp_path / "conf"), "slurm_account": "lab"}
    (result,) = launch_arms(comparison, tmp_path / "out", "slurm", resources=resources)
    assert result["status"] == "ok", (slurm / "job.log").read_text()
    script = (slurm / "job.sh").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script, re.M))
    assert (asked["time"], asked["mem"], asked["cpus-per-task"]) == ("90", "3GB", "5")
    assert (asked["partition"], asked["account"]) == ("long", "lab")
    assert asked["job-name"] == "seqtrain-compare"
    assert sys.executable in script


def test_what_is_shipped_says_what_an_arm_may_use() -> None:
    assert read_resources("slurm")["timeout_min"] == 240
    assert {"cpus_per_task", "mem_gb"} <= read_resources("slurm").keys()


def test_resources_that_are_no_names_and_values_are_refused(tmp_path: Path) -> None:
    (tmp_path / "launcher").mkdir()
    (tmp_path / "launcher" / "slurm.yaml").write_text("- gpu\n")
    with pytest.raises(ConfigError, match=r"slurm\.yaml: expected names and values"):
        read_resources("slurm", tmp_path)


def test_without_slurm_the_launcher_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="--launcher slurm"):
        launch_arms(tiny_comparison(tmp_path, ["none"]), tmp_path / "out", "slurm", resources={})


def test_unknown_resources_are_refused_before_anything_runs(tmp_path: Path) -> None:
    comparison = tiny_comparison(tmp_path, ["none"])
    with pytest.raises(ConfigError, match="gpus"):
        launch_arms(comparison, tmp_path, "processes", resources={"gpus": 2})
