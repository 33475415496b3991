"""Stores from the command line: made once, trained on in place of the files they were made of."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
from small_program import SMALL, Program, interrupt


@pytest.fixture(scope="module")
def stores(files: Path, program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stores of the small data set."""
    folder = tmp_path_factory.mktemp("stores")
    for part, size in (("train", 40), ("test", 20)):
        done = program("data", "tokenize", files / f"{part}.fasta", "-o", folder / f"{part}.arrow")
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith(f"{size} records, ")
        assert done.stderr.endswith(f"residues written to {folder}/{part}.arrow\n")
    assert sorted(path.name for path in folder.iterdir()) == ["test.arrow", "train.arrow"]
    return folder


def options(files: Path, stores: Path) -> list[str]:
    return [
        *("--train", str(stores / "train.arrow"), "--test", str(stores / "test.arrow")),
        *("--labels", str(files / "labels.tsv"), *SMALL),
    ]


def test_a_run_on_stores_is_that_on_their_files(
    files: Path, stores: Path, program: Program, run_dir: Path, tmp_path: Path
) -> None:
    done = program("train", *options(files, stores), "-o", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    for name in ("predictions/test.tsv", "predictions/valid.tsv", "splits.tsv"):
        ours, theirs = tmp_path / "run" / name, run_dir / name
        assert without_model(ours.read_text()) == without_model(theirs.read_text())
    weights = "checkpoints/best/model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (run_dir / weights).read_bytes()
    ours, theirs = (
        json.loads((run / "data.json").read_text()) for run in (tmp_path / "run", run_dir)
    )
    assert ours["fingerprints"] == theirs["fingerprints"]
    assert [file["path"] for file in ours["files"]["train"]] == [str(stores / "train.arrow")]


def without_model(table: str) -> str:
    """The comment above it names the run's settings, which hold the paths."""
    return "".join(line for line in table.splitlines(True) if not line.startswith("#"))


def test_an_interrupted_run_on_stores_goes_on(
    files: Path, stores: Path, program: Program, tmp_path: Path
) -> None:
    longer = [*options(files, stores), "trainer.max_epochs=4", "trainer.patience=4"]
    status, _ = interrupt(signal.SIGINT, "epoch 2/", "train", *longer, "-o", tmp_path / "run")
    assert status == 130
    done = program("train", *longer, "-o", tmp_path / "run", "--resume")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["epochs"] == 4


def test_a_store_can_be_made_of_standard_input(
    files: Path, stores: Path, program: Program, tmp_path: Path
) -> None:
    text = (files / "train.fasta").read_text()
    done = program("data", "tokenize", "-", "-o", tmp_path / "piped.arrow", stdin=text)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "piped.arrow").read_bytes() == (stores / "train.arrow").read_bytes()


def test_bad_records_make_no_store(program: Program, tmp_path: Path) -> None:
    (tmp_path / "bad.fasta").write_text(">a\nMKV\n>b\nMK1\n>a\nMKVL\n>c\n-\n")
    done = program("data", "tokenize", tmp_path / "bad.fasta", "-o", tmp_path / "bad.arrow")
    assert done.returncode == 1
    assert "3 records cannot be used" in done.stderr
    assert "no residue is left after dropping gaps and stops" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.fasta"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-o", "no/x.arrow"), "no does not exist. Make it first."),
        (("-o", "x.arrow", "--gap", "keep"), "tokenizer.gap: expected one of drop, unknown, error"),
        (("-o", "x.arrow", "--alphabet", "amino"), "--alphabet: expected protein, dna, rna"),
        (("-o", "-"), "--output -: expected the name of a file."),
        (("-o", "/dev/null"), "/dev/null: is no ordinary file"),
    ],
)
def test_what_cannot_be_done_is_said_before_or_instead(
    files: Path, program: Program, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = program("data", "tokenize", files / "train.fasta", *arguments, cwd=tmp_path)
    refused(done, said)
    assert list(tmp_path.iterdir()) == []


def test_a_store_does_not_take_the_place_of_what_it_is_made_of(
    program: Program, tmp_path: Path
) -> None:
    path, text = tmp_path / "a.fasta", ">a\nMKV\n"
    path.write_text(text)
    (tmp_path / "link").symlink_to(path)
    for output in (path, tmp_path / "link", "a.fasta"):
        done = program("data", "tokenize", "a.fasta", "-o", output, cwd=tmp_path)
        refused(done, "a.fasta, which is an input. Choose another name.")
    assert path.read_text() == text


def test_an_audit_of_stores_is_that_of_their_files(
    files: Path, stores: Path, program: Program, tmp_path: Path
) -> None:
    labels = ["--labels", files / "labels.tsv"]
    for folder, suffix in ((files, "fasta"), (stores, "arrow")):
        parts = [folder / f"train.{suffix}", "--test", folder / f"test.{suffix}"]
        done = program("data", "audit", *parts, *labels, "--json", tmp_path / f"{suffix}.json")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "fasta.json").read_text() == (tmp_path / "arrow.json").read_text()


def test_a_run_does_not_go_on_with_another_store(
    files: Path, stores: Path, program: Program, tmp_path: Path
) -> None:
    store, longer = tmp_path / "train.arrow", ["trainer.max_epochs=4", "trainer.patience=4"]
    store.write_bytes((stores / "train.arrow").read_bytes())
    said = ["--train", store, "--labels", files / "labels.tsv", *SMALL, *longer]
    status, _ = interrupt(signal.SIGINT, "epoch 2/", "train", *said, "-o", tmp_path / "run")
    assert status == 130
    store.write_bytes((stores / "test.arrow").read_bytes())
    done = program("train", *said, "-o", tmp_path / "run", "--resume")
    refused(done, "the data are not those that this run began with")


def test_verbs_that_read_fasta_say_so(
    files: Path, stores: Path, program: Program, run_dir: Path, tmp_path: Path
) -> None:
    store = stores / "test.arrow"
    for verb in (["predict", run_dir, store], ["eval", run_dir, store], ["data", "check", store]):
        refused(program(*verb), "test.arrow: expected text, found an Arrow file", "give the FASTA")
    mixed = ["train", "--train", files / "train.fasta", "--test", store, "-o", tmp_path / "run"]
    refused(program(*mixed), "train.fasta: expected a store as", "FASTA files alone")


def test_a_policy_that_is_not_the_stores_is_refused(
    files: Path, stores: Path, program: Program, tmp_path: Path
) -> None:
    done = program("train", *options(files, stores), "tokenizer.gap=unknown", "-o", tmp_path / "r")
    refused(done, "tokenizer.gap=unknown:", "was tokenized with drop. Set tokenizer.gap=drop, or")


def refused(done: "subprocess.CompletedProcess[str]", *said: str) -> None:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    for text in said:
        assert text in done.stderr
