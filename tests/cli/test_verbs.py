"""The verbs as a user runs them: exit codes, streams, files, and numbers that agree."""

import csv
import json
import math
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_program import SMALL, Program, command, interrupt

pytestmark = pytest.mark.slow


def read_table(path: Path) -> list[dict[str, str]]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines, delimiter="\t"))


def assert_user_error(done: subprocess.CompletedProcess[str], *said: str) -> None:
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    for words in said:
        assert words in done.stderr


def test_a_run_directory_holds_what_the_contract_says(run_dir: Path) -> None:
    for name in ("config.yaml", "data.json", "metrics.jsonl", "summary.json"):
        assert (run_dir / name).is_file()
    for name in ("tensorboard", "checkpoints/last", "checkpoints/best", "predictions"):
        assert any((run_dir / name).iterdir())
    data = json.loads((run_dir / "data.json").read_text())
    assert data["parts"]["train"]["records"] + data["parts"]["valid"]["records"] == 40
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [s["step"] for s in steps if s["kind"] == "step"] == list(
        range(1, sum(s["kind"] == "step" for s in steps) + 1)
    )
    assert [s["epoch"] for s in steps if s["kind"] == "epoch"] == [1, 2]


def test_train_says_what_it_chose_on_stderr_and_results_on_stdout(
    program: Program, train_options: list[str], tmp_path: Path
) -> None:
    done = program("train", *train_options, "-o", tmp_path / "run")
    assert "chosen: optim.lr" in done.stderr
    assert "epoch 2/2" in done.stderr
    assert "accuracy" in done.stdout
    assert "chosen" not in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_eval_json_agrees_with_its_table_and_with_hand_counting(
    program: Program, run_dir: Path, files: Path, tmp_path: Path
) -> None:
    done = program(
        "eval",
        run_dir,
        files / "test.fasta",
        "--labels",
        files / "labels.tsv",
        "-o",
        tmp_path / "p.tsv",
        "--json",
        tmp_path / "e.json",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "e.json").read_text())
    rows = read_table(tmp_path / "p.tsv")
    assert found["n"] == len(rows) == 20
    assert found["task"] == "classification"
    accuracy = sum(row["prediction"] == row["target"] for row in rows) / len(rows)
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(accuracy)
    loss = np.mean([-math.log(float(row[f"prob_{row['target']}"])) for row in rows])
    assert found["metrics"]["loss"]["value"] == pytest.approx(loss, rel=1e-4)
    for metric in found["metrics"].values():
        assert metric["low"] <= metric["value"] <= metric["high"]
    assert sum(row["n"] for row in found["by_length"]) == 20
    assert {"majority", "length_only"} <= set(found["baselines"])
    assert found["baselines"]["majority"]["accuracy"] == pytest.approx(0.5)
    assert np.sum(found["confusion"]) == 20


def test_predictions_do_not_depend_on_format_batch_size_or_company(
    program: Program, run_dir: Path, files: Path, tmp_path: Path
) -> None:
    program("predict", run_dir, files / "test.fasta", "-o", tmp_path / "a.tsv")
    program("predict", run_dir, files / "test.fasta", "-o", tmp_path / "a.parquet")
    program(
        "predict", run_dir, files / "test.fasta", "-o", tmp_path / "a.jsonl", "--batch-size", "1"
    )
    tsv = read_table(tmp_path / "a.tsv")
    parquet = pq.read_table(tmp_path / "a.parquet").to_pylist()
    jsonl = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    evaluated = read_table(run_dir / "predictions" / "test.tsv")
    names = [f"r{i}" for i in range(40, 60)]
    for table in (tsv, parquet, jsonl, evaluated):
        assert [row["id"] for row in table] == names
        ours = [float(row["prob_W"]) for row in table]
        np.testing.assert_allclose(ours, [float(row["prob_W"]) for row in tsv], atol=2e-6)


def test_predict_keeps_order_and_count_of_bad_records(
    program: Program, run_dir: Path, tmp_path: Path
) -> None:
    text = ">good\nACDW\n>empty\n\n>good\nACD\n>odd\nAC1\n>last\nWWW\n"
    done = program("predict", run_dir, "-", "--on-error", "skip", stdin=text)
    rows = list(csv.DictReader(done.stdout.splitlines()[1:], delimiter="\t"))
    assert [row["id"] for row in rows] == ["good", "empty", "good", "odd", "last"]
    assert [row["status"] == "ok" for row in rows] == [True, False, False, False, True]
    assert [bool(row["prediction"]) for row in rows] == [True, False, False, False, True]
    refused = program("predict", run_dir, "-", "-o", tmp_path / "p.tsv", stdin=text)
    assert_user_error(refused, "empty", "odd", "--on-error skip")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_run_is_never_overwritten(
    program: Program, run_dir: Path, train_options: list[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()}
    assert_user_error(program("train", *train_options, "-o", run_dir), "already contains a run")
    complete = program("train", *train_options, "-o", run_dir, "--resume")
    assert_user_error(complete, "complete")
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_overwrite_leaves_what_is_not_of_the_run(
    program: Program, train_options: list[str], tmp_path: Path
) -> None:
    program("train", *train_options, "-o", tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    done = program("train", *train_options, "-o", tmp_path, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_dry_run_writes_nothing(program: Program, train_options: list[str], tmp_path: Path) -> None:
    done = program("train", *train_options, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout
    assert "estimated" in done.stdout
    assert list(tmp_path.iterdir()) == []


def final_weights(run: Path) -> bytes:
    return (run / "checkpoints" / "last" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_an_interrupted_run_ends_as_if_nothing_had_happened(
    program: Program, train_options: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    longer = [*train_options, "trainer.max_epochs=12", "trainer.checkpoint_minutes=0"]
    whole = program("train", *longer, "-o", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    run = tmp_path / "cut"
    status, said = interrupt(number, "epoch 3/", "train", *longer, "-o", run)
    if number == signal.SIGINT:
        assert status == 130
        assert "--resume" in said
    assert not (run / "summary.json").exists()
    resumed = program("train", "--resume", "-o", run)
    assert resumed.returncode == 0, resumed.stderr
    assert final_weights(run) == final_weights(tmp_path / "whole")
    lines = [
        (tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "cut")
    ]
    losses = [
        [json.loads(x)["loss"] for x in part if json.loads(x)["kind"] == "step"] for part in lines
    ]
    assert losses[0] == losses[1]


def test_resume_refuses_other_settings_and_other_data(
    program: Program, train_options: list[str], files: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    endless = [*train_options, "trainer.max_epochs=100000", "trainer.patience=0"]
    process = subprocess.Popen(
        command("train", *endless, "-o", run),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (run / "checkpoints" / "last").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    second = program("train", *endless, "-o", run, "--resume")
    assert_user_error(second, "another process")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    other = program("train", *endless, "optim.lr=0.5", "-o", run, "--resume")
    assert_user_error(other, "optim.lr")
    moved = tmp_path / "train.fasta"
    moved.write_text((files / "train.fasta").read_text().replace("W", "C"))
    resumed = program("train", "--train", moved, "-o", run, "--resume")
    assert_user_error(resumed, "the data are not those")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(files / "train.fasta"), str(moved)))
    edited = program("train", "-o", run, "--resume")
    assert_user_error(edited, "config.yaml: is damaged or was edited")


def test_wrong_usage_exits_with_2(program: Program) -> None:
    for arguments in (["nonsense"], ["train", "--no-such-option"], ["train", "--resume"], ["eval"]):
        done = program(*arguments)
        assert done.returncode == 2, arguments
        assert "Traceback" not in done.stderr


def test_unknown_settings_name_the_nearest(program: Program) -> None:
    assert_user_error(program("train", "optim.learning_rate=1"), "optim.learning_rate")
    assert_user_error(program("train", "optim.lrr=1"), "Did you mean 'optim.lr'")
    assert_user_error(program("train", "+typo=1"), "typo")
    assert_user_error(program("train", "-n", "ncrn"), "Did you mean 'ncrna'")
    assert_user_error(program("config", "show", "norm=masked_bach"), "masked_batch")


def test_config_show_reads_back(program: Program) -> None:
    shown = program("config", "show", "encoder=transformer", "optim.lr=0.001")
    assert "num_heads: 4" in shown.stdout
    assert "lr: 0.001" in shown.stdout
    listed = program("config", "list").stdout
    assert "masked_batch " in listed
    assert "ncrna" in listed


def test_info_shows_the_run(program: Program, run_dir: Path) -> None:
    found = json.loads(program("info", run_dir, "--json").stdout)
    assert found["task"] == "classification"
    assert found["classes"] == ["A", "W"]
    assert found["config"]["encoder"]["embed_dim"] == 8
    assert "test accuracy" in program("info", run_dir).stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("ACDEF\n", "FASTA"),
        (">a\nACD\n>a\nACD\n", "used before"),
        (">\nACD\n", "id"),
        (">a\n\n>b\nAC\n", "empty"),
        (">a\nAC1D\n>b\nAC\n", "residue 3"),
        (">r0\nACD\n>zzz\nACD\n", "has no label"),
    ],
    ids=["empty", "not FASTA", "duplicate", "blank id", "no residues", "digit", "no label"],
)
def test_bad_records_are_named(
    program: Program, files: Path, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "bad.fasta").write_text(text)
    done = program(
        "train",
        "--train",
        tmp_path / "bad.fasta",
        "--labels",
        files / "labels.tsv",
        *SMALL,
        "-o",
        tmp_path / "run",
    )
    assert_user_error(done, "bad.fasta", said)
    assert not (tmp_path / "run").exists()


def test_runs_that_are_none_or_damaged_are_named(
    program: Program, run_dir: Path, files: Path, tmp_path: Path
) -> None:
    import shutil

    fasta = files / "test.fasta"
    assert_user_error(program("predict", tmp_path, fasta), "not a run directory")
    broken = tmp_path / "broken"
    shutil.copytree(run_dir, broken)
    weights = broken / "checkpoints" / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert_user_error(program("predict", broken, fasta), "damaged")
    assert_user_error(program("predict", run_dir, tmp_path / "none.fasta"), "none.fasta")
    assert_user_error(program("predict", run_dir, fasta, "-o", tmp_path / "x.doc"), ".tsv")


def test_compare_norms_tabulates_every_arm(
    program: Program, train_options: list[str], tmp_path: Path
) -> None:
    done = program("compare-norms", *train_options, "--seeds", "1", "-o", tmp_path / "c")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "c" / "results.csv").read_text().splitlines()))
    assert {row["norm"] for row in rows} >= {"masked_batch", "batch"}
