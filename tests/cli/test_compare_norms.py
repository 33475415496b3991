"""`seqtrain compare-norms` as a user runs it: killed, gone on with, with jobs, with a bad arm."""

import csv
import json
import subprocess
import time
from pathlib import Path

import pytest
from small_program import Program, command
from typer.testing import CliRunner, Result

from seqtrain.cli.main import app
from seqtrain.compare import budget
from seqtrain.errors import SeqtrainError

pytestmark = pytest.mark.slow

TINY = ("encoder.kernel_size=3", "trainer.max_epochs=1")


def run_here(*arguments: str) -> Result:
    """The program within this process: no second import of torch."""
    return CliRunner().invoke(app, list(arguments))


def rows_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "results.csv").read_text().splitlines()))


def test_a_killed_comparison_goes_on_and_its_arms_are_runs_like_any_other(
    program: Program, train_options: list[str], files: Path, tmp_path: Path
) -> None:
    out = tmp_path / "norms"
    asked = ["compare-norms", *train_options, *TINY, "-o", str(out)]
    asked += ["--norms", "batch,layer,none", "--seeds", "1"]
    first, last = (out / f"{norm}-random-cnn-seed0" / "arm.json" for norm in ("batch", "none"))
    with subprocess.Popen(command(*asked), stderr=subprocess.DEVNULL) as killed:
        while not first.exists() and killed.poll() is None:
            time.sleep(0.02)
        killed.kill()
    assert first.exists()
    assert not last.exists()
    kept = first.stat().st_mtime_ns
    done = program(*asked, "--resume")
    assert done.returncode == 0, done.stderr
    assert first.stat().st_mtime_ns == kept
    assert "arm 3/3: none-random-cnn-seed0" in done.stderr
    assert "arm 1/3" not in done.stderr
    assert [row["status"] for row in rows_of(out)] == ["ok"] * 3
    assert "20 test records and 1 seed" in done.stdout
    for name in ("report.html", "report.md", "figures/differences.png"):
        assert (out / name).stat().st_size > 1000
    table = ["--labels", str(files / "labels.tsv"), "--json", str(tmp_path / "e.json")]
    scored = run_here("eval", str(first.parent), str(files / "test.fasta"), *table)
    assert scored.exit_code == 0, scored.output
    found = json.loads((tmp_path / "e.json").read_text())["metrics"]["mcc"]["value"]
    assert found == pytest.approx(json.loads(first.read_text())["metrics"]["mcc"], abs=1e-6)
    shown = run_here("info", str(first.parent))
    assert shown.exit_code == 0, shown.output
    assert "not complete" not in shown.output


def test_arms_run_as_processes_within_a_budget_and_clusters_are_resampled(
    program: Program, train_options: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("submitit", reason="pip install 'seqtrain[launch]'")
    clusters = tmp_path / "clusters.tsv"
    clusters.write_text("".join(f"r{i}\tone\n" for i in range(60)))
    done = program(
        *("compare-norms", *train_options, "encoder.kernel_size=3", "-o", tmp_path / "norms"),
        *("--norms", "batch,none", "--seeds", "1", "--launcher", "processes", "--jobs", "2"),
        *("--clusters", clusters, "--budget", "20m", "--resources", "timeout_min=5"),
    )
    assert done.returncode == 0, done.stderr
    assert "--budget 20m: 2 of 2 epochs and 1 of 1 seeds, about" in done.stderr
    assert "clusters.tsv: 20 of 20 scored records have one" in done.stderr
    assert [row["status"] for row in rows_of(tmp_path / "norms")] == ["ok", "ok"]
    witnesses = [
        json.loads(path.read_text())["witness"]
        for path in (tmp_path / "norms").glob("*seed0/arm.json")
    ]
    assert witnesses[0] == witnesses[1]
    assert len(list((tmp_path / "norms" / "jobs").glob("*_log.out"))) == 2
    # With one cluster there is nothing to permute.
    (line,) = [
        text
        for text in (tmp_path / "norms" / "report.md").read_text().splitlines()
        if text.startswith("| none | batch |")
    ]
    assert line.split(" | ")[6:8] == ["1.000", "1.000"]


def test_a_resumed_comparison_keeps_what_its_budget_chose(
    train_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["compare-norms", *train_options, *TINY, "-o", str(tmp_path / "norms")]
    asked += ["--norms", "none", "--seeds", "3"]
    # An epoch takes nothing and the rest of an arm 25 s: two seeds fit into a minute.
    monkeypatch.setattr(budget, "time_one_arm", lambda comparison: (0.0, 25.0))
    first = run_here(*asked, "--budget", "1m")
    assert first.exit_code == 0, first.output
    monkeypatch.setattr(budget, "time_one_arm", lambda comparison: pytest.fail("timed anew"))
    (tmp_path / "norms" / "none-random-cnn-seed1" / "outputs.npy").write_bytes(b"half")
    second = run_here(*asked, "--budget", "10m", "--resume")
    assert second.exit_code == 0, second.output
    assert "As chosen for the budget before: 1 of 1 epochs and 2 of 3 seeds" in second.output
    assert "arm 2/2" in second.output
    assert "arm 1/2" not in second.output
    assert [row["status"] for row in rows_of(tmp_path / "norms")] == ["ok", "ok"]


def test_an_arm_that_fails_is_reported_and_the_others_go_on(
    train_options: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "norms"
    # Weights of this size multiply to infinity within ten layers, unless a norm scales them.
    bad = ["encoder.num_layers=10", "optim.lr=1e3", "optim.warmup_fraction=0"]
    asked = ["compare-norms", *train_options, *bad, "-o", str(out), "--norms", "layer,none"]
    done = run_here(*asked, "--seeds", "1")
    assert done.exit_code == 0, done.output
    assert "failed: none-random-cnn-seed0: TrainingError: step" in done.stderr
    layer, none = rows_of(out)
    assert (layer["status"], none["status"]) == ("ok", "failed")
    assert "fewer than two conditions" in done.stdout
    report = (out / "report.md").read_text()
    assert "none-random-cnn, seed 0" in report[report.index("## Arms without a result") :]


def test_batchings_and_encoders_are_crossed_and_each_has_its_reference(
    train_options: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "norms"
    asked = ["compare-norms", *train_options, "trainer.max_epochs=1", "-o", str(out), "--quiet"]
    asked += ["--norms", "batch", "--seeds", "1", "--batching", "random,packed"]
    done = run_here(*asked, "--encoders", "cnn,transformer")
    assert done.exit_code == 0, done.output
    rows = rows_of(out)
    ways = [(row["encoder"], row["batching"]) for row in rows]
    assert ways == [(e, b) for e in ("cnn", "transformer") for b in ("random", "packed")]
    assert [float(row["padding_share"]) > 0 for row in rows] == [True, False] * 2
    pairs = [
        [cell.strip() for cell in line.split("|")[1:3]]
        for line in (out / "report.md").read_text().splitlines()
        if line.startswith("| batch, ") and "| batch, " in line[3:]
    ]
    assert pairs == [
        ["batch, packed, cnn", "batch, random, cnn"],
        ["batch, random, transformer", "batch, random, cnn"],
        ["batch, packed, transformer", "batch, random, transformer"],
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--norms", "masked_bach"], "masked_batch"),
        (["--launcher", "cluster"], "local, processes or slurm"),
        (["--budget", "soon"], "30m"),
        (["--clusters", "absent.tsv"], "absent.tsv: cannot be read"),
        (["--launcher", "processes", "--resources", "gpus"], "KEY=VALUE"),
        (["--launcher", "processes", "--resources", "a=[1"], "is no YAML"),
        (["--resources", "mem_gb=1"], "--resources: needs --launcher processes or slurm"),
        (["norm=batch"], "norm=batch: is what is compared. Use --norms instead"),
        (["batching.kind=bucketed"], "Use --batching instead"),
        (["trainer.seed=7"], "Use --seeds"),
        (["--norms", "none,masked_group", "norm.num_groups=5"], "a multiple of norm.num_groups"),
        (["--budget", "0s"], "expected some time"),
        (["--clusters", "CLUSTERS"], "names none of the 20 records that are scored, such as"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_trained(
    train_options: list[str],
    tmp_path: Path,
    options: list[str],
    said: str,
) -> None:
    out, clusters = tmp_path / "norms", tmp_path / "clusters.tsv"
    clusters.write_text("stranger\tfamily\n")
    options = [str(clusters) if option == "CLUSTERS" else option for option in options]
    done = run_here("compare-norms", *train_options, "-o", str(out), *options)
    assert isinstance(done.exception, SeqtrainError), done.output
    assert said in str(done.exception)
    assert not list(out.glob("*"))
