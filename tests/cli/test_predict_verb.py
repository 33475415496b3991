"""`seqtrain predict` at scale: several models, parts of records, processes, interruptions."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_program import command
from tiny_runs import random_fasta, tiny_run
from typer.testing import CliRunner

from seqtrain.cli.main import app
from seqtrain.errors import ConfigError, FastaError
from seqtrain.evaluation import writing
from seqtrain.training.calibration import Calibration

LENGTHS = [9, 1, 30, 4, 77, 12]
CALIBRATION = Calibration((2.5,), "valid", 10, 0.2, 0.1)


def calibrate(run: Path) -> Path:
    (run / "calibration.json").write_text(CALIBRATION.to_json())
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models of the same question; the first is calibrated."""
    folder = tmp_path_factory.mktemp("runs")
    encoders = ("cnn", "transformer", "cnn")
    made = [
        tiny_run(folder / str(i), encoder=encoder, pooling=("mean_max", "mean", "max")[i])
        for i, encoder in enumerate(encoders)
    ]
    calibrate(made[0])
    return made


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_fasta(tmp_path_factory.mktemp("fasta") / "x.fasta", LENGTHS)


def predict(*arguments: str | Path, catch: bool = False) -> Any:
    said = CliRunner().invoke(
        app, ["predict", *map(str, arguments), "--device", "cpu"], catch_exceptions=catch
    )
    assert catch or said.exit_code == 0, said.output
    return said


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return list(pq.read_table(path).to_pylist())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    _, names, *rows = path.read_text().splitlines()
    return [dict(zip(names.split("\t"), row.split("\t"), strict=True)) for row in rows]


def probabilities(row: dict[str, Any], prefix: str = "prob_") -> list[float]:
    return [float(row[f"{prefix}{name}"]) for name in "abc"]


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl", ".parquet"])
def test_an_ensemble_gives_mean_spread_and_what_each_member_says(
    runs: list[Path], fasta: Path, tmp_path: Path, suffix: str
) -> None:
    alone = []
    for i, run in enumerate(runs):
        predict(run, fasta, "-o", tmp_path / f"{i}.jsonl")
        alone.append([probabilities(row) for row in read(tmp_path / f"{i}.jsonl")])
    others = [word for run in runs[1:] for word in ("--ensemble", run)]
    predict(runs[0], fasta, *others, "-o", tmp_path / f"all{suffix}")
    found = read(tmp_path / f"all{suffix}")
    assert len(found) == len(LENGTHS)
    for i, row in enumerate(found):
        members = np.array([each[i] for each in alone])
        np.testing.assert_allclose(probabilities(row), members.mean(axis=0), atol=2e-6)
        np.testing.assert_allclose(
            probabilities(row, "std_"), members.std(axis=0, ddof=1), atol=2e-6
        )
        for number, member in enumerate(members, 1):
            np.testing.assert_allclose(
                probabilities(row, f"member{number}_prob_"), member, atol=2e-6
            )
        assert row["prediction"] == "abc"[int(members.mean(axis=0).argmax())]


@pytest.mark.parametrize(
    ("task", "pooling"), [("regression", "mean"), ("residue_classification", "mean")]
)
def test_an_ensemble_without_class_columns(
    tmp_path: Path, fasta: Path, task: str, pooling: str
) -> None:
    runs = [tiny_run(tmp_path / n, task, encoder=n) for n in ("cnn", "transformer")]
    for run in runs:
        predict(run, fasta, "-o", tmp_path / f"{run.name}.jsonl")
    predict(runs[0], fasta, "--ensemble", runs[1], "-o", tmp_path / "both.jsonl")
    rows = zip(
        *(read(tmp_path / f"{n}.jsonl") for n in ("both", "cnn", "transformer")), strict=True
    )
    for both, first, second in rows:
        said = [first["prediction"], second["prediction"]]
        assert [both["member1"], both["member2"]] == said
        if task == "regression":
            assert both["prediction"] == pytest.approx(np.mean(said), rel=1e-5)
            assert both["std"] == pytest.approx(np.std(said, ddof=1), rel=1e-4, abs=1e-6)
        else:
            assert len(both["prediction"]) == both["length"]
            assert 0 <= both["std"] < 0.8


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_models_of_different_questions_are_no_ensemble(
    runs: list[Path], fasta: Path, tmp_path: Path, task: str
) -> None:
    other = tiny_run(tmp_path / "other", task)
    with pytest.raises(ConfigError, match=rf"other: cannot answer .*expected the task .*{task}"):
        predict(runs[0], fasta, "--ensemble", other)


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl", ".parquet"])
def test_top_k_names_the_most_probable_classes_in_order(
    runs: list[Path], fasta: Path, tmp_path: Path, suffix: str
) -> None:
    predict(runs[0], fasta, "-o", tmp_path / "all.jsonl")
    predict(runs[0], fasta, "--top-k", "2", "-o", tmp_path / f"top{suffix}")
    for whole, top in zip(
        read(tmp_path / "all.jsonl"), read(tmp_path / f"top{suffix}"), strict=True
    ):
        ordered = sorted("abc", key=lambda name: -whole[f"prob_{name}"])
        assert [top["top_1"], top["top_2"]] == ordered[:2]
        assert float(top["top_2_prob"]) == pytest.approx(whole[f"prob_{ordered[1]}"], rel=1e-5)
        assert top["prediction"] == ordered[0]
        assert not any(name.startswith(("prob_", "top_3")) for name in top)


def test_top_k_needs_classes_and_gives_no_more_than_there_are(
    runs: list[Path], fasta: Path, tmp_path: Path
) -> None:
    predict(runs[0], fasta, "--top-k", "9", "-o", tmp_path / "t.jsonl")
    assert "top_3" in read(tmp_path / "t.jsonl")[0]
    assert "top_4" not in read(tmp_path / "t.jsonl")[0]
    with pytest.raises(ConfigError, match="--top-k 2: a regression"):
        predict(tiny_run(tmp_path / "r", "regression"), fasta, "--top-k", "2")


def test_probabilities_are_calibrated_and_say_so(
    runs: list[Path], fasta: Path, tmp_path: Path
) -> None:
    said = predict(runs[0], fasta).stdout.splitlines()[0]
    assert "calibrated by temperature scaling (T = 2.5, valid part)" in said
    plain = predict(runs[0], fasta, "--uncalibrated", "-o", tmp_path / "plain.tsv")
    assert plain.exit_code == 0
    assert "probabilities, uncalibrated" in (tmp_path / "plain.tsv").read_text()
    predict(runs[0], fasta, "-o", tmp_path / "cal.tsv")
    for raw, calibrated in zip(
        read(tmp_path / "plain.tsv"), read(tmp_path / "cal.tsv"), strict=True
    ):
        wanted = np.array(probabilities(raw)) ** (1 / 2.5)
        np.testing.assert_allclose(probabilities(calibrated), wanted / wanted.sum(), atol=1e-5)
        assert raw["prediction"] == calibrated["prediction"]
    assert "uncalibrated" in predict(runs[1], fasta).stdout.splitlines()[0]


def test_windows_are_named_and_change_long_records_alone(
    runs: list[Path], fasta: Path, tmp_path: Path
) -> None:
    predict(runs[0], fasta, "-o", tmp_path / "whole.jsonl")
    predict(runs[0], fasta, "--window", "40", "-o", tmp_path / "w.jsonl")
    heading = predict(runs[0], fasta, "--window", "40").stdout.splitlines()[0]
    assert "longer records in windows of 40, overlapping by 10, mean of all" in heading
    rows = zip(read(tmp_path / "whole.jsonl"), read(tmp_path / "w.jsonl"), strict=True)
    differs = [not np.allclose(probabilities(a), probabilities(b), atol=1e-4) for a, b in rows]
    assert differs == [n > 40 for n in LENGTHS]
    with pytest.raises(ConfigError, match="less than the window"):
        predict(runs[0], fasta, "--window", "4", "--overlap", "4")


def test_records_unlike_the_training_are_warned_of_and_stay_ok(
    runs: list[Path], tmp_path: Path
) -> None:
    """The tiny runs were trained on 4 to 90 residues."""
    odd = tmp_path / "odd.fasta"
    odd.write_text(f">long\n{'MKVLW' * 19}\n>fine\nMKVLAAG\n>dna\n{'ACGT' * 10}\n>bad\n-\n")
    said = predict(runs[0], odd, "--warnings", "--on-error", "skip", "-o", tmp_path / "p.tsv")
    rows = read(tmp_path / "p.tsv")
    assert [row["warning"] for row in rows] == ["length", "", "alphabet", ""]
    assert [row["status"] == "ok" for row in rows] == [True, True, True, False]
    assert "1 of 3 records (33.3%) do not look like protein" in said.stderr
    assert (
        "1 of 3 records (33.3%) are shorter or longer than any training record (4 to 90)"
        in said.stderr
    )
    assert "1 of 4 records cannot be used and have no prediction" in said.stderr
    plain = predict(runs[0], odd, "--on-error", "skip", "-o", tmp_path / "q.tsv")
    assert "do not look like protein" in plain.stderr
    assert "warning" not in read(tmp_path / "q.tsv")[0]
    quiet = predict(runs[0], odd, "--on-error", "skip", "-q", "-o", tmp_path / "q.tsv")
    assert quiet.stderr == ""


def assert_same_rows(found: Path, wanted: Path) -> None:
    """Equal but for the last digits: a record's company in a batch differs."""
    for a, b in zip(read(found), read(wanted), strict=True):
        assert a.keys() == b.keys()
        for name, cell in b.items():
            if name.startswith(("prob_", "std_", "member")) and cell:
                assert float(a[name]) == pytest.approx(float(cell), abs=1e-5)
            else:
                assert a[name] == cell


class Interrupted:
    """Rows that end with Ctrl-C after so many."""

    def __init__(self, after: int):
        self.after = after
        self.write = writing._write_text

    def __call__(self, write: Any, lines: Any) -> int:
        def some() -> Iterator[str]:
            for number, line in enumerate(lines):
                if number == self.after:
                    write(line[: len(line) // 2])
                    raise KeyboardInterrupt
                yield line

        return self.write(write, some())


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl"])
@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_an_interrupted_table_is_gone_on_with(
    runs: list[Path],
    fasta: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    after: int,
) -> None:
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"p{suffix}"
    predict(runs[0], fasta, "-o", whole)
    with monkeypatch.context() as patch:
        patch.setattr(writing, "_write_text", Interrupted(after))
        said = predict(runs[0], fasta, "-o", path, catch=True)
    assert said.exit_code == 130
    assert "continue with the same command and --resume" in said.stderr
    assert not path.exists()
    begun = (tmp_path / f"p{suffix}.partial").read_text()
    assert whole.read_text().startswith(begun)
    assert len(begun) > 0
    seen: list[int] = []
    monkeypatch.setattr(
        "seqtrain.cli.predict._tally",
        lambda answers, counts: (seen.append(1) or row for row, _ in answers),
    )
    predict(runs[0], fasta, "-o", path, "--resume")
    assert_same_rows(path, whole)
    heading = 2 if suffix == ".tsv" else 0
    assert len(seen) == len(LENGTHS) - max(0, after - heading)
    assert not list(tmp_path.glob("*.partial*"))


def interrupt(runs: list[Path], fasta: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(writing, "_write_text", Interrupted(4))
        assert predict(runs[0], fasta, "-o", path, catch=True).exit_code == 130


def test_a_table_is_not_gone_on_with_by_another_model_options_or_input(
    runs: list[Path], fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.tsv"
    interrupt(runs, fasta, path, monkeypatch)
    begun = (tmp_path / "p.tsv.partial").read_bytes()
    for arguments in (
        [runs[2], fasta],
        [runs[0], fasta, "--uncalibrated"],
        [runs[0], fasta, "--top-k", "1"],
        [runs[0], fasta, "--window", "9"],
    ):
        with pytest.raises(ConfigError, match="another model or other options"):
            predict(*arguments, "-o", path, "--resume")
    other = tmp_path / "other.fasta"
    other.write_text(">r0\nMKV\n>r7\nMKV\n")
    with pytest.raises(ConfigError, match="row 2 is that of 'r1', but the input has 'r7' there"):
        predict(runs[0], other, "-o", path, "--resume")
    other.write_text(">r0\nMKV\n")
    with pytest.raises(ConfigError, match="no more records"):
        predict(runs[0], other, "-o", path, "--resume")
    assert begun.startswith((tmp_path / "p.tsv.partial").read_bytes())
    predict(runs[0], fasta, "-o", path, "--resume")
    assert [row["id"] for row in read(path)] == [f"r{i}" for i in range(len(LENGTHS))]


def test_resume_begins_where_nothing_was_and_refuses_what_is_whole_or_parquet(
    runs: list[Path], fasta: Path, tmp_path: Path
) -> None:
    predict(runs[0], fasta, "-o", tmp_path / "p.tsv", "--resume")
    with pytest.raises(ConfigError, match="is whole already"):
        predict(runs[0], fasta, "-o", tmp_path / "p.tsv", "--resume")
    with pytest.raises(ConfigError, match=r"cannot continue a Parquet"):
        predict(runs[0], fasta, "-o", tmp_path / "p.parquet", "--resume")
    said = predict(runs[0], fasta, "--resume", catch=True)
    assert said.exit_code == 2


def test_an_error_on_resuming_keeps_the_rows_before_it(
    runs: list[Path], fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, longer = tmp_path / "p.tsv", tmp_path / "longer.fasta"
    longer.write_text(fasta.read_text() + ">bad\nMK1\n")
    interrupt(runs, fasta, path, monkeypatch)
    with pytest.raises(FastaError, match="'bad'"):
        predict(runs[0], longer, "-o", path, "--resume")
    assert len((tmp_path / "p.tsv.partial").read_text().splitlines()) == 4
    predict(runs[0], longer, "-o", path, "--resume", "--on-error", "skip")
    rows = read(path)
    assert [row["status"] == "ok" for row in rows] == [True] * len(LENGTHS) + [False]


@pytest.mark.slow
def test_several_processes_write_the_same_table(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fasta = random_fasta(tmp_path / "x.fasta", [5, 60, 1, 33] * 20)
    fasta.write_text(fasta.read_text().replace(">r7\n", ">r7\n1"))
    monkeypatch.setattr("seqtrain.evaluation.chunks.SHARED_RECORDS", 7)
    options = ["--ensemble", runs[1], "--warnings", "--window", "20", "--on-error", "skip"]
    one = predict(runs[0], fasta, *options, "-o", tmp_path / "one.jsonl")
    two = predict(runs[0], fasta, *options, "-o", tmp_path / "two.jsonl", "--workers", "2")
    assert two.stderr.replace("two", "one") == one.stderr
    assert_same_rows(tmp_path / "one.jsonl", tmp_path / "two.jsonl")


def test_devices_are_one_process_each(runs: list[Path], fasta: Path) -> None:
    arguments = ["predict", str(runs[0]), str(fasta), "--device", "cpu,cpu", "--workers", "2"]
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 2
    assert "exclude each other" in said.output
    said = CliRunner().invoke(app, [*arguments[:-4], "--device", "cpu,tpu"])
    assert isinstance(said.exception, ConfigError)
    assert "found 'tpu'" in str(said.exception)


@pytest.mark.slow
def test_a_stopped_program_exits_with_130_and_can_be_resumed(
    runs: list[Path], tmp_path: Path
) -> None:
    """The input is a pipe that is not closed: the program waits for more when it is stopped."""
    path = tmp_path / "p.tsv"
    records = [f">r{i}\nMKVLAAGW\n" for i in range(9000)]
    process = subprocess.Popen(
        command("predict", runs[0], "-", "-o", path, "--device", "cpu"),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write("".join(records[:5000]))
    process.stdin.flush()
    partial = tmp_path / "p.tsv.partial"
    while process.poll() is None and not (partial.exists() and partial.stat().st_size > 1e5):
        pass
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "--resume" in said
    assert "Traceback" not in said
    written = partial.read_text().count("\n") - 2
    assert 0 < written < 9000
    (tmp_path / "x.fasta").write_text("".join(records))
    done = subprocess.run(
        command("predict", runs[0], "-", "-o", path, "--device", "cpu", "--resume"),
        input="".join(records),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert [row["id"] for row in read(path)] == [f"r{i}" for i in range(9000)]
