"""`data split`: labels are read as in training, and the printed command trains on its file."""

import json
import shlex
from pathlib import Path

import pytest
from prepared_data import Folder, peptides
from typer.testing import CliRunner, Result

from seqtrain.cli.main import app
from seqtrain.errors import DataError

NUM = 40


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def inputs(folder: Folder, kind: str) -> list[str]:
    """FASTA and labels of a kind."""
    records = peptides(NUM)
    attributes = {
        "header": "label={}",
        "biotrainer": "TARGET={} SET=train VALIDATION=False",
        "upper": "LABEL={}",
    }
    text = attributes.get(kind, "")
    titled = {f"{k} {text.format('ab'[n % 2])}": s for n, (k, s) in enumerate(records.items())}
    fasta = folder.fasta("my a.fasta", titled)
    if kind == "table":
        return [fasta, "--labels", folder.table({k: "ab"[n % 2] for n, k in enumerate(records)})]
    if kind == "fasta":
        letters = {k: ("HN" * len(s))[: len(s)] for k, s in records.items()}
        return [fasta, "--labels", folder.fasta("labels.fa", letters)]
    return [fasta]


@pytest.mark.parametrize("kind", ["table", "fasta", "header", "biotrainer", "upper"])
def test_the_printed_command_trains_on_the_split_that_was_written(folder, kind):
    table = folder.path / "splits.tsv"
    said = run("data", "split", *inputs(folder, kind), "-o", str(table))
    rows = dict(line.split("\t") for line in table.read_text().splitlines()[1:])
    command = next(line for line in said.stderr.splitlines() if line.startswith("train with: "))
    words = shlex.split(command.removeprefix("train with: "))
    assert words[:2] == ["seqtrain", "train"]
    assert ("names splits already" in said.stderr) == (kind == "biotrainer")
    shown = run(*words[1:], "--dry-run", "--json")
    parts = json.loads(shown.stdout)["data"]["parts"]
    counts = {part: list(rows.values()).count(part) for part in ("train", "valid", "test")}
    assert {part: facts["records"] for part, facts in parts.items()} == counts


def test_a_splits_table_among_the_labels_is_not_passed_on(folder):
    old = folder.write("old.tsv", "id\tsplit\n" + "".join(f"p{n}\ttrain\n" for n in range(NUM)))
    files = [*inputs(folder, "table"), "--labels", old]
    said = run("data", "split", *files, "-o", str(folder.path / "s.tsv"))
    assert f"warning: {old}: is a splits table and not read here" in said.stderr
    assert "old.tsv" not in said.stderr.split("train with: ")[1]


def test_labels_that_a_method_does_not_read_are_told(folder):
    files = inputs(folder, "table")
    said = run("data", "split", *files, "--method", "random", "-o", str(folder.path / "s.tsv"))
    assert "warning: --labels not used: --method random reads no labels" in said.stderr


def test_stores_are_split_as_their_files_are(folder):
    (fasta,) = inputs(folder, "header")
    store = str(folder.path / "store.arrow")
    run("data", "tokenize", fasta, "-o", store)
    for name, path in (("a.tsv", fasta), ("b.tsv", store)):
        run("data", "split", path, "-o", str(folder.path / name))
    assert (folder.path / "a.tsv").read_text() == (folder.path / "b.tsv").read_text()


def test_a_stratified_split_without_labels_names_the_ways_out(folder):
    fasta = folder.fasta("a.fasta", peptides(5))
    with pytest.raises(DataError, match="give --labels, or use random or similarity"):
        run("data", "split", fasta, "-o", str(folder.path / "s.tsv"))


def test_audit_takes_the_table_and_prints_what_training_would_warn_of(folder):
    files = inputs(folder, "table")
    table = folder.path / "splits.tsv"
    run("data", "split", *files, "-o", str(table))
    table.write_text(table.read_text() + "stranger\ttest\n")
    said = run("data", "audit", *files, "--splits", str(table))
    assert said.exit_code == 0
    assert f"warning: 1 ids of {table} match no record: 'stranger'" in said.stderr


def test_without_labels_the_command_that_is_printed_trains_mlm(folder):
    files = inputs(folder, "none")
    said = run("data", "split", *files, "--method", "random", "-o", str(folder.path / "s.tsv"))
    words = shlex.split(said.stderr.split("train with: seqtrain ")[1].splitlines()[0])
    assert "task=mlm" in words
    assert run(*words, "--dry-run", "--json").exit_code == 0
