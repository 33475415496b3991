"""Options and settings that name data: used together, or refused; none is dropped in silence."""

import json
from pathlib import Path

import pytest
from prepared_data import Folder, peptides
from typer.testing import CliRunner, Result

from seqtrain.cli.main import app
from seqtrain.errors import ConfigError, FastaError


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def show(*arguments: str) -> Result:
    command = ["train", *arguments, "--dry-run", "--json"]
    return CliRunner().invoke(app, command, catch_exceptions=False)


def data_of(*arguments: str) -> dict[str, object]:
    said = show(*arguments)
    assert said.exit_code == 0, said.stderr
    data: dict[str, object] = json.loads(said.stdout)["data"]
    return data


@pytest.fixture
def given(folder: Folder) -> list[str]:
    """Training files and labels, of other records too."""
    labels = {f"{p}{n}": "ab"[n % 2] for p in "ptv" for n in range(20)}
    return ["--train", folder.fasta("a.fasta", peptides(20)), "--labels", folder.table(labels)]


@pytest.mark.parametrize("part", ["valid", "test"])
def test_files_named_by_a_setting_are_used_beside_options(folder, given, part):
    other = folder.fasta("other.fasta", peptides(4, part[0]))
    data = data_of(*given, f"data.{part}=[{other}]")
    assert data["parts"][part]["records"] == 4


def test_labels_named_by_a_setting_are_used_beside_options(given):
    labels = given.pop()
    assert data_of(*given[:-1], f"data.labels=[{labels}]")["files"]["labels"][0]["path"] == labels


def test_training_files_named_by_a_setting_leave_out_the_bundled_data(given):
    _, train, *labels = given
    data = data_of(f"data.train=[{train}]", *labels)
    assert data["files"].keys() == {"train", "labels"}


def test_a_file_named_by_a_setting_that_is_not_there_is_told(given):
    with pytest.raises(FastaError, match=r"absent\.fasta: no such file"):
        show(*given, "data.test=[absent.fasta]")


def test_files_of_an_own_config_that_train_replaces_are_told(folder, given):
    folder.write(
        "mine.yaml",
        "defaults: [config, _self_]\ndata: {train: [x.fa], test: [y.fa], labels: [z]}\n",
    )
    own = ["-n", "mine", "-d", str(folder.path)]
    told = [line for line in data_of(*given, *own)["warnings"] if "replaces" in line]
    assert told == [
        "--train replaces all files that 'mine' names: data.test (y.fa) is not used. Name these "
        "files as options too if you want them"
    ]
    assert not [line for line in data_of(*given)["warnings"] if "replaces" in line]


@pytest.mark.parametrize(
    ("option", "value", "key"),
    [
        ("--train", "x.fasta", "data.train=[y.fasta]"),
        ("--valid", "x.fasta", "data.valid=[y.fasta]"),
        ("--test", "x.fasta", "data.test=[y.fasta]"),
        ("--labels", "x.tsv", "data.labels=[y.tsv]"),
        ("--splits", "x.tsv", "data.splits=[y.tsv]"),
        ("--label-column", "x", "data.label_column=y"),
        ("--id-column", "x", "data.id_column=y"),
        ("--split-column", "x", "++data.split_column=y"),
    ],
)
@pytest.mark.parametrize("verb", [["train"], ["compare-norms", "-o", "out"]])
def test_an_option_and_a_setting_that_say_the_same_are_refused(verb, option, value, key):
    with pytest.raises(ConfigError, match=f"^{option} replaces data"):
        CliRunner().invoke(app, [*verb, option, value, key], catch_exceptions=False)


def test_settings_given_beside_splits_by_file_are_told_even_at_their_default(folder, given):
    other = folder.fasta("valid.fasta", peptides(4, "v"))
    data = data_of(*given, "--valid", other, "data.valid_fraction=0.1", "data.split_method=random")
    told = [line for line in data["warnings"] if "is not used" in line]
    assert [line.split()[0] for line in told] == ["data.valid_fraction", "data.split_method"]
    plain = data_of(*given, "--valid", other)
    assert not [line for line in plain["warnings"] if "is not used" in line]


def test_options_of_jobs_need_a_launcher_of_jobs():
    command = ["compare-norms", "-o", "out", "--jobs", "3"]
    with pytest.raises(ConfigError, match="--jobs: needs --launcher processes or slurm"):
        CliRunner().invoke(app, command, catch_exceptions=False)
