"""`train` and `eval` say at once what makes their scores worth little."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_program import SMALL, write_records
from typer.testing import CliRunner

from seqtrain.cli.main import app


def run(*arguments: str | Path) -> Any:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 0, (done.output, done.exception)
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records, a test file that holds copies of training records, and a run on both."""
    folder = tmp_path_factory.mktemp("leaks")
    write_records(folder)
    rows = (folder / "labels.tsv").read_text().splitlines()
    label = dict(row.split("\t") for row in rows)
    records = (folder / "train.fasta").read_text().split(">")[1:]
    with (folder / "copies.fasta").open("w") as file, (folder / "labels.tsv").open("a") as table:
        for record in records[:12]:
            name, sequence = record.split("\n", 1)
            file.write(f">copy_{name}\n{sequence}")
            table.write(f"copy_{name}\t{label[name]}\n")
    (folder / "mixed.fasta").write_text(
        (folder / "copies.fasta").read_text() + (folder / "test.fasta").read_text()
    )
    data = ("--train", folder / "train.fasta", "--test", folder / "mixed.fasta")
    options = (*SMALL, "logger=none", "-o", folder / "run")
    done = run("train", *data, "--labels", folder / "labels.tsv", *options)
    (folder / "said.txt").write_text(done.stderr)
    return folder


def evaluated(folder: Path, *arguments: str | Path, run_name: str = "run") -> tuple[str, Any]:
    numbers = folder / "numbers.json"
    done = run("eval", folder / run_name, *arguments, "--json", numbers, "--device", "cpu")
    return done.stderr, json.loads(numbers.read_text())


def test_train_says_that_test_records_are_copies(folder: Path) -> None:
    copies = "of 32 test records are exact copies of train records"
    lines = [line for line in (folder / "said.txt").read_text().splitlines() if copies in line]
    assert len(lines) == 1
    assert lines[0].startswith("warning: ")
    data = json.loads((folder / "run/data.json").read_text())
    summary = json.loads((folder / "run/summary.json").read_text())
    assert summary["warnings"] == data["warnings"]
    assert f"warning: {next(w for w in data['warnings'] if copies in w)}" == lines[0]
    among = summary["test"]["copies_of_training"]["records"]
    assert f"{among} {copies}" in lines[0]


def test_eval_counts_copies_and_scores_the_others(folder: Path) -> None:
    labels = ("--labels", folder / "labels.tsv")
    said, numbers = evaluated(folder, folder / "mixed.fasta", *labels)
    found = numbers["copies_of_training"]
    assert 8 <= found["records"] <= 12  # some of the training file were set aside for validation
    assert numbers["warnings"] == [
        line.removeprefix("warning: ") for line in said.splitlines() if line.startswith("warning: ")
    ]
    assert f"{found['records']} of 32 records are exact copies" in numbers["warnings"][0]
    _, alone = evaluated(folder, folder / "test.fasta", *labels)
    assert (alone["copies_of_training"]["records"], alone["warnings"]) == (0, [])
    if found["records"] == 12:
        ours = {name: metric["value"] for name, metric in alone["metrics"].items()}
        for name, value in found["metrics_without"].items():
            assert ours[name] == pytest.approx(value)


@pytest.mark.parametrize("kept", [True, False], ids=["hashes", "a run of before"])
def test_eval_on_the_training_file_is_told(folder: Path, kept: bool) -> None:
    if not kept:
        shutil.copytree(folder / "run", folder / "old")
        (folder / "old/SHA256SUMS").unlink(missing_ok=True)
        part = folder / "old/training_part.npz"
        with np.load(part) as arrays:
            found = {name: arrays[name] for name in ("lengths", "targets")}
        np.savez(part, **found)
    said, numbers = evaluated(
        folder,
        folder / "train.fasta",
        "--labels",
        folder / "labels.tsv",
        run_name="run" if kept else "old",
    )
    assert "trained on" in said
    assert ("exact copies" if kept else "is a file that") in numbers["warnings"][0]
    assert (numbers["copies_of_training"] is not None) == kept


def test_a_bundle_knows_the_training_records_too(folder: Path) -> None:
    run("export", folder / "run", "--format", "bundle", "-o", folder / "bundle")
    said, _ = evaluated(
        folder, folder / "copies.fasta", "--labels", folder / "labels.tsv", run_name="bundle"
    )
    assert "exact copies of records that the model was trained on" in said


def test_twenty_dna_records_for_a_protein_model_are_told(folder: Path) -> None:
    rng = np.random.default_rng(0)
    dna = ["".join(rng.choice(list("ACGT"), 40)) for _ in range(20)]
    (folder / "dna.fasta").write_text("".join(f">d{i} label=A\n{x}\n" for i, x in enumerate(dna)))
    said, numbers = evaluated(folder, folder / "dna.fasta")
    assert "warning: 20 of 20 records look like nucleotides, but are read as protein" in said
    assert len(numbers["warnings"]) == 1


def test_a_test_file_of_dna_is_told_before_training(folder: Path) -> None:
    labels = (folder / "labels.tsv").read_text() + "".join(f"d{i}\tA\n" for i in range(20))
    (folder / "more.tsv").write_text(labels)
    rng = np.random.default_rng(0)
    dna = ["".join(rng.choice(list("ACGT"), 25)) for _ in range(20)]
    (folder / "d.fasta").write_text("".join(f">d{i}\n{x}\n" for i, x in enumerate(dna)))
    data = ("--train", folder / "train.fasta", "--test", folder / "d.fasta")
    done = run("train", *data, "--labels", folder / "more.tsv", *SMALL, "--dry-run")
    assert "warning: 20 of 20 test records look like nucleotides" in done.stderr
