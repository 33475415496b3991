"""`seqtrain data check` gives the answer of `seqtrain train`, without training."""

import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from seqtrain.cli.main import app
from seqtrain.data.prepare import prepare_data
from seqtrain.errors import SeqtrainError

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
NUM_RECORDS = 40


def lengths() -> list[int]:
    return [20 + n % 7 for n in range(NUM_RECORDS)]


@pytest.fixture
def fasta(tmp_path: Path) -> str:
    rng = random.Random(0)
    path = tmp_path / "a.fasta"
    records = (f">r{n}\n{''.join(rng.choices(LETTERS, k=k))}\n" for n, k in enumerate(lengths()))
    path.write_text("".join(records))
    return str(path)


def table(header: str, cells: list[str]) -> str:
    return f"id\t{header}\n" + "".join(f"r{n}\t{cell}\n" for n, cell in enumerate(cells))


def spread(*cells: str) -> list[str]:
    return [cells[n % len(cells)] for n in range(NUM_RECORDS)]


def residues(change: dict[int, str]) -> str:
    texts = [("HC" * k)[:k] for k in lengths()]
    return "".join(f">r{n}\n{change.get(n, text)}\n" for n, text in enumerate(texts))


NUMBERS = [f"{n / 7:.3f}" for n in range(NUM_RECORDS)]
FAULTS = {
    "one class": table("label", spread("only")),
    "a class each": table("label", [f"name{n}" for n in range(NUM_RECORDS)]),
    "a constant": table("target", spread("1.5")),
    "no number": table("target", [*NUMBERS[:-1], "n.d."]),
    "too large": table("target", [*NUMBERS[:-1], "1e39"]),
    "missing": table("label", [*spread("a", "b")[:-1], "NA"]),
    "a row missing": table("label", spread("a", "b")[:-1]),
    "two readings": table("label", [str(n % 12) for n in range(NUM_RECORDS)]),
    "odd splits": table("label\tsplit", spread("a\tholdout", "b\ttrain")),
    "some splits": table("label\tsplit", [*spread("a\ttrain", "b\ttrain")[:-1], "a\t"]),
    "two columns": table("label\tlabel", spread("a\tx", "b\ty")),
    "profile too short": table(
        "target", [",".join(["0.5"] * (k - (n == 3))) for n, k in enumerate(lengths())]
    ),
    "residues too few": residues({5: "HCHC"}),
}


def check(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["data", "check", *arguments])


@pytest.mark.parametrize("name", FAULTS)
def test_check_refuses_what_training_refuses(fasta: str, tmp_path: Path, name: str) -> None:
    labels = tmp_path / "labels.tsv"
    labels.write_text(FAULTS[name])
    with pytest.raises(SeqtrainError) as refused:
        prepare_data(train=[fasta], labels=[str(labels)])
    done = check(fasta, "--labels", str(labels), "--json", str(tmp_path / "c.json"))
    assert isinstance(done.exception, SeqtrainError)
    report = json.loads((tmp_path / "c.json").read_text())
    assert report["fault"] == str(refused.value)
    as_options = str(refused.value).replace("task=", "--task ")
    assert str(done.exception) == as_options


def test_check_says_columns_task_and_splits_as_training_does(fasta: str, tmp_path: Path) -> None:
    labels = tmp_path / "labels.tsv"
    labels.write_text(
        table(
            "class\tactivity\tsplit",
            spread("a\t1\ttrain", "b\t2\ttrain", "a\t2\ttest", "b\t1\ttest"),
        )
    )
    done = check(fasta, "--labels", str(labels), "--json", str(tmp_path / "c.json"))
    assert done.exit_code == 0
    assert f"labels: {labels}, label column 'class' (by its name), id column 'id'" in done.stderr
    assert "task: classification (40 cells, 2 different names)" in done.stderr
    report = json.loads((tmp_path / "c.json").read_text())
    assert report["facts"]["records for train / valid / test"] == "18 / 2 / 20"
    assert report["facts"]["label a"] == 20
    assert report["fault"] is None


def test_check_takes_the_options_of_training(fasta: str, tmp_path: Path) -> None:
    labels = tmp_path / "labels.tsv"
    labels.write_text(table("label\tpart", spread("1,865\ttrain", "351\ttrain", "1,865\ttest")))
    options = ("--labels", str(labels), "--label-column", "label", "--split-column", "part")
    asked = check(fasta, *options)
    assert "Set --decimal comma, or --decimal point." in str(asked.exception)
    done = check(fasta, *options, "--decimal", "point")
    assert done.exit_code == 0
    assert "'1,865' is 1865" in done.stderr
    named = check(fasta, *options, "--task", "classification")
    assert named.exit_code == 0
    assert "task: classification (given)" in named.stderr


@pytest.mark.parametrize("verb", ["train", "data check", "data split", "eval"])
def test_option_of_one_value_given_twice_is_refused(verb: str) -> None:
    options = ["--label-column", "a", "--label-column", "b"]
    done = CliRunner().invoke(app, [*verb.split(), "a.fasta", *options])
    assert done.exit_code == 2
    assert "--label-column is given twice" in done.stderr
    flags = CliRunner().invoke(app, ["data", "check", "x.fasta", "--overwrite", "--overwrite"])
    assert "twice" not in flags.stderr


def test_check_looks_at_labels_in_headers(tmp_path: Path) -> None:
    path = tmp_path / "a.fasta"
    path.write_text("".join(f">r{n} label={'ab'[n % 2]}\nMKVLA\n" for n in range(20)))
    done = check(str(path))
    assert done.exit_code == 0
    assert "labels: the headers (label=...)" in done.stderr
    path.write_text(path.read_text().replace("r7 label=b", "r7"))
    assert "record 'r7' (8th, line 15): has no label" in str(check(str(path)).exception)
    skipped = check(str(path), "--on-error", "skip")
    assert skipped.exit_code == 0
    assert "1 record without a label is left out" in skipped.stderr


def test_check_without_labels_looks_at_sequences_alone(fasta: str) -> None:
    done = check(fasta)
    assert done.exit_code == 0
    assert "task" not in done.output


def test_check_with_skip_says_what_training_would_refuse(fasta: str, tmp_path: Path) -> None:
    labels = tmp_path / "labels.tsv"
    labels.write_text(FAULTS["one class"])
    done = check(fasta, "--labels", str(labels), "--on-error", "skip")
    assert done.exit_code == 0
    assert "warning: `seqtrain train` would refuse:" in done.stderr
    missing = check(fasta, "--labels", str(tmp_path / "x.tsv"), "--on-error", "skip")
    assert "no such file" in str(missing.exception)
