"""`eval`, `predict` and `embed` read over-long and bad records alike, and say what they did."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny_runs import random_fasta, tiny_run
from typer.testing import CliRunner

from seqtrain import load_model
from seqtrain.cli.main import app
from seqtrain.errors import ConfigError, FastaError
from seqtrain.training.sums import write_listed

LENGTHS = [9, 1, 30, 4, 77, 12]
LONGEST = 10
LONG = [2, 4, 5]


def run_with(folder: Path, task: str, **data: Any) -> Path:
    """A run whose training had these settings of ``data``."""
    path = tiny_run(folder / f"{task}-{data.get('overlong')}", task)
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["data"] |= data
    write_listed(path / "config.yaml", yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("overlong")


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Path]:
    """A classification by policy."""
    return {
        overlong: run_with(folder, "classification", max_length=LONGEST, overlong=overlong)
        for overlong in ("truncate", "skip", "error")
    }


@pytest.fixture(scope="module")
def fasta(folder: Path) -> Path:
    return random_fasta(folder / "x.fasta", LENGTHS, label="a")


def call(*arguments: str | Path) -> Any:
    command = [*map(str, arguments), "--device", "cpu"]
    said = CliRunner().invoke(app, command, catch_exceptions=False)
    assert said.exit_code == 0, said.output
    return said


def both_tables(folder: Path, *arguments: str | Path) -> tuple[list[Any], list[Any], list[Any]]:
    """Rows of `eval` and of `predict`, and what is on standard error of each."""
    tables, said = [], []
    for verb in ("eval", "predict"):
        path = folder / f"{verb}.jsonl"
        said.append(call(verb, *arguments, "--warnings", "-o", path).stderr)
        tables.append([json.loads(line) for line in path.read_text().splitlines()])
    for row in tables[0]:
        row.pop("target")
    return tables[0], tables[1], said


def assert_alike(evaluated: list[Any], predicted: list[Any]) -> None:
    """Within the rounding that other batches make."""
    assert [row["id"] for row in evaluated] == [row["id"] for row in predicted]
    for ours, theirs in zip(evaluated, predicted, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert value == (pytest.approx(theirs[name], abs=2e-6)), name


def test_truncated_records_are_cut_and_said_by_every_verb(
    runs: dict[str, Path], fasta: Path, tmp_path: Path
) -> None:
    run = runs["truncate"]
    evaluated, predicted, said = both_tables(tmp_path, run, fasta)
    assert_alike(evaluated, predicted)
    assert [row["length"] for row in predicted] == [min(n, LONGEST) for n in LENGTHS]
    assert {row["status"] for row in predicted} == {"ok"}
    cut = [i for i, row in enumerate(predicted) if "truncated" in (row["warning"] or "")]
    assert cut == LONG
    said.append(call("embed", run, fasta, "-o", tmp_path / "e.npz").stderr)
    for words in said:
        assert "warning: 3 of 6 records are longer than the model's data.max_length=10" in words
        assert "are cut to that" in words
    with np.load(tmp_path / "e.npz") as arrays:
        assert arrays["lengths"].tolist() == [min(n, LONGEST) for n in LENGTHS]
    whole, _, _ = both_tables(tmp_path, run, fasta, "--overlong", "whole")
    assert [row["length"] for row in whole] == LENGTHS
    assert whole[0]["prob_a"] == pytest.approx(predicted[0]["prob_a"], abs=2e-6)
    assert whole[4]["prob_a"] != pytest.approx(predicted[4]["prob_a"], abs=1e-4)


def test_skipped_records_have_a_row_with_the_reason_and_are_counted(
    runs: dict[str, Path], fasta: Path, tmp_path: Path
) -> None:
    run = runs["skip"]
    evaluated, predicted, said = both_tables(tmp_path, run, fasta, "--on-error", "skip")
    assert_alike(evaluated, predicted)
    left_out = [i for i, row in enumerate(evaluated) if row["status"] != "ok"]
    assert left_out == LONG
    assert "77 residues are more than data.max_length=10" in evaluated[4]["status"]
    assert evaluated[4]["prediction"] is None
    said.append(call("embed", run, fasta, "-o", tmp_path / "e.npz").stderr)
    assert all("warning: 3 of 6 records" in words and "left out" in words for words in said)
    with np.load(tmp_path / "e.npz") as arrays:
        assert np.flatnonzero(arrays["status"] != "ok").tolist() == LONG
        assert np.isnan(arrays["embeddings"]).all(axis=1).tolist() == [i in LONG for i in range(6)]
    out = call("eval", run, fasta, "--json", tmp_path / "e.json", "-q").stdout
    assert "3 over-long of 6 records left out: 3 records" in " ".join(out.split())
    found = json.loads((tmp_path / "e.json").read_text())
    assert (found["n"], found["num_records"]) == (3, 6)
    assert found["left_out"] == {"over-long": 3}


@pytest.mark.parametrize("verb", ["eval", "predict", "embed"])
def test_what_training_refused_is_refused_with_a_fix_of_this_verb(
    runs: dict[str, Path], fasta: Path, tmp_path: Path, verb: str
) -> None:
    output = tmp_path / ("x.npz" if verb == "embed" else "x.tsv")
    with pytest.raises(FastaError, match=r"'r2'.*--overlong truncate.*--window") as told:
        call(verb, runs["error"], fasta, "-o", output)
    assert "data.overlong" not in str(told.value)
    assert "--on-error skip" in str(told.value)
    for fix in (["--overlong", "truncate"], ["--window", "8"], ["--on-error", "skip"]):
        call(verb, runs["error"], fasta, "-o", output, *fix)


def test_bad_records_are_rows_of_every_verb_in_the_order_of_the_input(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "x.fasta"
    texts = ["MKV", "", "MKVLAAGWMKVLAAGW", "M1", "MK-V", "MK", "WW1"]
    records = (f">r{i} label=b\n{text}\n" for i, text in enumerate(texts))
    path.write_text("".join(records) + ">r0 label=a\nMKV\n")
    evaluated, predicted, said = both_tables(tmp_path, runs["skip"], path, "--on-error", "skip")
    assert_alike(evaluated, predicted)
    assert [row["status"] == "ok" for row in evaluated] == [1, 0, 0, 0, 1, 1, 0, 0]
    for words in said:
        assert "4 of 8 records cannot be used" in words
    with pytest.raises(FastaError, match=r"4 records cannot be used(.|\n)*--on-error skip"):
        call("eval", runs["skip"], path)


@pytest.mark.parametrize("task", ["regression", "residue_classification", "residue_regression"])
def test_windows_say_the_same_in_every_verb(folder: Path, tmp_path: Path, task: str) -> None:
    run = run_with(folder, task, max_length=LONGEST, overlong="truncate")
    fasta = random_fasta(tmp_path / "x.fasta", LENGTHS)
    labels = {
        "regression": lambda n: "1.5",
        "residue_classification": lambda n: "h" * n,
        "residue_regression": lambda n: ",".join(["0.5"] * n),
    }[task]
    if task == "residue_classification":
        path = tmp_path / "l.fasta"
        path.write_text("".join(f">r{i}\n{labels(n)}\n" for i, n in enumerate(LENGTHS)))
    else:
        path = tmp_path / "l.tsv"
        rows = (f"r{i}\t{labels(n)}\n" for i, n in enumerate(LENGTHS))
        path.write_text("id\tlabel\n" + "".join(rows))
    tables = {}
    for verb in ("eval", "predict"):
        out = tmp_path / f"{verb}.jsonl"
        given = ["--labels", path] if verb == "eval" else []
        call(verb, run, fasta, *given, "--window", "8", "-o", out)
        tables[verb] = [json.loads(line) for line in out.read_text().splitlines()]
    for row in tables["eval"]:
        row.pop("target")
    assert [row["length"] for row in tables["predict"]] == LENGTHS
    for ours, theirs in zip(tables["eval"], tables["predict"], strict=True):
        if task == "residue_regression":
            split = [[float(x) for x in row.pop("prediction").split(",")] for row in (ours, theirs)]
            assert split[0] == pytest.approx(split[1], abs=1e-4)
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_residues_that_were_not_read_are_dashes_in_both_tables(
    folder: Path, tmp_path: Path
) -> None:
    run = run_with(folder, "residue_classification", max_length=3, overlong="truncate")
    (tmp_path / "x.fasta").write_text(">a\nM-KVLA\n>b\nMK\n")
    (tmp_path / "l.fasta").write_text(">a\nhehche\n>b\nhe\n")
    labels = tmp_path / "l.fasta"
    call("predict", run, tmp_path / "x.fasta", "-o", tmp_path / "p.jsonl")
    call("eval", run, tmp_path / "x.fasta", "--labels", labels, "-o", tmp_path / "e.jsonl")
    predicted, evaluated = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("p.jsonl", "e.jsonl")
    )
    assert [row["target"] for row in evaluated] == ["h-hc--", "he"]
    assert [row["prediction"] for row in evaluated] == [row["prediction"] for row in predicted]
    assert predicted[0]["prediction"][1] + predicted[0]["prediction"][4:] == "---"


def test_vectors_of_windows_are_those_of_the_whole_record_where_windows_see_enough(
    folder: Path, tmp_path: Path
) -> None:
    run = run_with(folder, "regression", max_length=None)
    fasta = random_fasta(tmp_path / "x.fasta", [200, 30])
    options = [["--window", "120", "--overlap", "110"], []]
    for pooling in (["--per-residue"], ["--pooling", "mean"], ["--pooling", "max"]):
        made = []
        for number, windows in enumerate(options):
            path = tmp_path / f"{number}.npz"
            call("embed", run, fasta, "-o", path, *windows, *pooling)
            with np.load(path) as arrays:
                made.append(arrays["embeddings"])
        np.testing.assert_allclose(made[0], made[1], atol=1e-5)


def test_python_reads_long_sequences_as_the_program_does(
    runs: dict[str, Path], fasta: Path
) -> None:
    model = load_model(runs["truncate"])
    answers = model.predict(fasta)
    assert [answer.length for answer in answers] == [min(n, LONGEST) for n in LENGTHS]
    assert "truncated" in answers[4].warnings
    skipping = load_model(runs["skip"])
    assert [i for i, each in enumerate(skipping.predict(fasta)) if each.status != "ok"] == LONG
    assert np.isnan(skipping.embed(fasta)).all(axis=1).sum() == 3


@pytest.mark.parametrize("verb", ["eval", "predict", "embed"])
def test_a_policy_that_has_nothing_to_say_is_refused(
    runs: dict[str, Path], fasta: Path, folder: Path, verb: str
) -> None:
    unlimited = run_with(folder, "classification", max_length=None)
    output = folder / ("x.npz" if verb == "embed" else "x.tsv")
    for run, options, words in (
        (unlimited, ["--overlong", "skip"], "without data.max_length"),
        (runs["skip"], ["--overlong", "cut"], "expected one of error, truncate, skip, whole"),
        (runs["skip"], ["--overlong", "whole", "--window", "9"], "one of the two"),
    ):
        with pytest.raises(ConfigError, match=words):
            call(verb, run, fasta, "-o", output, *options)


def test_eval_prints_its_tables_also_when_quiet(runs: dict[str, Path], fasta: Path) -> None:
    loud, quiet = (call("eval", runs["truncate"], fasta, *extra) for extra in ([], ["-q"]))
    assert "accuracy" in quiet.stdout
    assert quiet.stdout == loud.stdout
    assert quiet.stderr == ""
    assert "labels: the headers (label=...)" in loud.stderr
    assert "task: classification" in loud.stderr
