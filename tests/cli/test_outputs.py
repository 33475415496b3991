"""No verb writes over what it reads, nor over a file that the program did not make."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_program import SMALL
from tiny_runs import random_fasta, tiny_run
from typer.testing import CliRunner

from seqtrain.cli.main import app
from seqtrain.data.outputs import Output, check_outputs
from seqtrain.data.own_files import is_report
from seqtrain.errors import ConfigError, SeqtrainError

LENGTHS = [9, 30, 14, 25, 41, 12, 33, 18, 22, 27]


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)])


def worked(*arguments: str | Path) -> Any:
    done = run(*arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return done


def refused(*arguments: str | Path) -> str:
    done = run(*arguments)
    assert isinstance(done.exception, SeqtrainError), (arguments, done.output, done.exception)
    return str(done.exception)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FASTA file under names of all kinds of output, labels, a run, a bundle."""
    folder = tmp_path_factory.mktemp("made")
    random_fasta(folder / "a.fasta", LENGTHS)
    for suffix in ("tsv", "jsonl", "parquet", "npz", "json", "arrow"):
        shutil.copy(folder / "a.fasta", folder / f"in.{suffix}")
    rows = "".join(f"r{i}\t{'abc'[i % 3]}\n" for i in range(len(LENGTHS)))
    (folder / "labels.tsv").write_text(f"id\tlabel\n{rows}")
    (folder / "labels.json").write_text(f"id\tlabel\n{rows}")
    tiny_run(folder / "run")
    (folder / "run/predictions").mkdir()
    tiny_run(folder / "run.partial")
    worked("export", folder / "run", "--format", "bundle", "-o", folder / "bundle")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of all that, as the current folder, which is whole afterwards."""
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    monkeypatch.chdir(copy)

    def contents() -> dict[str, bytes]:
        files = [path for path in sorted(made.rglob("*")) if path.is_file()]
        return {str(p.relative_to(made)): (copy / p.relative_to(made)).read_bytes() for p in files}

    before = contents()
    yield copy
    assert contents() == before


def direct(path: str) -> str:
    return path


def absolute(path: str) -> str:
    return str(Path(path).absolute())


def roundabout(path: str) -> str:
    return f"run/../{path}"


def symbolic(path: str) -> str:
    link = Path(f"link{Path(path).suffix}")
    link.symlink_to(path)
    return str(link)


def hard(path: str) -> str:
    link = Path(f"hard{Path(path).suffix}")
    os.link(path, link)
    return str(link)


WAYS = (direct, absolute, roundabout, symbolic, hard)
EVAL = ("eval", "run", "a.fasta", "--device", "cpu", "--labels")
TAKEN: tuple[tuple[tuple[str, ...], str], ...] = (
    (("data", "split", "a.fasta", "--method", "random", "-o"), "a.fasta"),
    (("data", "split", "a.fasta", "--labels", "labels.tsv", "-o"), "labels.tsv"),
    (("data", "check", "a.fasta", "--json"), "a.fasta"),
    (("data", "check", "a.fasta", "--labels", "labels.tsv", "--json"), "labels.tsv"),
    (("data", "tokenize", "in.arrow", "-o"), "in.arrow"),
    (("data", "audit", "a.fasta", "--labels", "labels.json", "--json"), "labels.json"),
    (("data", "audit", "in.tsv", "--test", "in.json", "--json"), "in.json"),
    ((*EVAL, "labels.tsv", "-o"), "labels.tsv"),
    ((*EVAL, "labels.json", "--json"), "labels.json"),
    ((*EVAL, "labels.tsv", "--json"), "run/data.json"),
    (("eval", "bundle", "a.fasta", "--labels", "labels.tsv", "--json"), "bundle/bundle.json"),
    (("predict", "run", "in.tsv", "-o"), "in.tsv"),
    (("predict", "run", "in.jsonl", "-o"), "in.jsonl"),
    (("predict", "run", "in.parquet", "-o"), "in.parquet"),
    (("predict", "bundle", "a.fasta", "--ensemble", "run", "-o"), "run/data.json"),
    (("embed", "run", "in.npz", "-o"), "in.npz"),
    (("embed", "run", "in.parquet", "-o"), "in.parquet"),
    (("embed", "run", "a.fasta", "-o"), "run/training_part.npz"),
)


@pytest.mark.parametrize(("command", "path"), TAKEN, ids=lambda x: "-".join(x)[:60])
def test_no_input_is_written_over(folder: Path, command: tuple[str, ...], path: str) -> None:
    for way in WAYS:
        said = refused(*command, way(path), "--overwrite")
        assert "which is an input" in said or "cannot tell the table's format" in said


def test_what_a_file_is_called_until_it_is_whole_is_no_input_either(folder: Path) -> None:
    for name in ("x.tsv.partial", "x.tsv.partial.json"):
        shutil.copy("in.tsv", name)
        said = refused("predict", "run", name, "-o", "x.tsv")
        assert name in said
        assert Path(name).read_bytes() == Path("in.tsv").read_bytes()


def test_an_export_does_not_clear_away_the_run_that_it_is_of(folder: Path) -> None:
    shutil.rmtree("run")
    said = refused("export", "run.partial", "--format", "bundle", "-o", "run")
    assert "run.partial" in said
    shutil.copytree("run.partial", "run")


@pytest.mark.parametrize(
    "place", ["run/checkpoints/new.tsv", "run/predictions/test.tsv", "bundle/new.tsv"]
)
def test_a_model_gets_no_files_of_others(folder: Path, place: str) -> None:
    said = refused("predict", place.split("/")[0], "a.fasta", "-o", place)
    assert "is part of" in said
    assert not Path(place).exists()


def test_predictions_may_lie_beside_those_of_the_run(folder: Path) -> None:
    for _ in range(2):
        worked("predict", "run", "a.fasta", "-o", "run/predictions/a.tsv", "--device", "cpu")


def test_two_outputs_are_two_files(folder: Path) -> None:
    said = refused(*EVAL, "labels.tsv", "-o", "p.jsonl", "--json", "./p.jsonl")
    assert "Name two files" in said


AGAIN = (
    ("data", "split", "a.fasta", "--method", "random", "-o", "out.tsv"),
    ("data", "check", "a.fasta", "--json", "out.json"),
    ("data", "tokenize", "a.fasta", "-o", "out.arrow"),
    ("data", "audit", "a.fasta", "--labels", "labels.tsv", "--json", "out.json"),
    (*EVAL, "labels.tsv", "-o", "out.tsv"),
    (*EVAL, "labels.tsv", "--json", "out.json"),
    ("predict", "run", "a.fasta", "-o", "out.tsv", "--device", "cpu"),
    ("predict", "run", "a.fasta", "-o", "out.jsonl", "--device", "cpu"),
    ("predict", "run", "a.fasta", "-o", "out.parquet", "--device", "cpu"),
    ("embed", "run", "a.fasta", "-o", "out.npz", "--device", "cpu"),
    ("embed", "run", "a.fasta", "-o", "out.parquet", "--device", "cpu"),
)


@pytest.mark.parametrize("command", AGAIN, ids=lambda x: "-".join(x)[:40])
def test_an_output_is_replaced_by_the_same_command_and_nothing_else_is(
    folder: Path, command: tuple[str, ...]
) -> None:
    path = Path(next(word for word in command if word.startswith("out.")))
    path.touch()  # as mktemp leaves it
    worked(*command)
    first = path.read_bytes()
    worked(*command)
    assert path.read_bytes() == first
    path.write_text('{"id": 1}\n')
    assert "--overwrite" in refused(*command)
    assert path.read_text() == '{"id": 1}\n'
    worked(*command, "--overwrite")
    assert path.read_bytes() == first
    assert not list(folder.glob("out*.partial*"))


def test_one_kind_of_output_is_not_replaced_by_another(folder: Path) -> None:
    worked("data", "split", "a.fasta", "--method", "random", "-o", "s.tsv")
    assert "exists already" in refused("predict", "run", "a.fasta", "-o", "s.tsv")
    worked("data", "check", "a.fasta", "--json", "c.json")
    assert "exists already" in refused(*EVAL, "labels.tsv", "--json", "c.json")


def test_bench_leaves_reports_of_others(folder: Path) -> None:
    Path("b.json").write_text('{"command": "seqtrain bench"}')
    assert "exists already" in refused("bench", "data", "--json", "b.json")
    Path("b.json").write_text('{"command": "", "bench": "data", "figures": []}')
    assert is_report("command", "bench", "figures")(Path("b.json"))


def test_a_split_table_with_a_column_more_is_not_the_programs(folder: Path) -> None:
    for text in ("id\tsplit\tlabel\nr0\ttrain\ta\n", "id\tsplit\nr0\tmine\n"):
        Path("s.tsv").write_text(text)
        refused("data", "split", "a.fasta", "--method", "random", "-o", "s.tsv")
        assert Path("s.tsv").read_text() == text


def test_a_file_that_quarantine_would_write_is_left(folder: Path) -> None:
    command = ("data", "check", "a.fasta", "--on-error", "quarantine")
    worked(*command)
    before = Path("a.clean.fasta").read_bytes()
    assert "a.clean.fasta" in refused(*command)
    worked(*command, "--overwrite")
    assert "which is an input" in refused(
        "data", "check", "a.clean.fasta", "--on-error", "quarantine", "--overwrite"
    )
    assert Path("a.clean.fasta").read_bytes() == before


def test_json_may_go_to_a_device(folder: Path) -> None:
    worked("data", "check", "a.fasta", "--json", "/dev/null")
    assert "name of a file" in refused("data", "check", "a.fasta", "--json", "-")
    assert not Path("-").exists()


def trained(path: str, *arguments: str) -> tuple[str, ...]:
    return ("train", "--train", path, "--labels", "labels.tsv", *SMALL, *arguments)


def test_overwrite_deletes_no_input(folder: Path) -> None:
    Path("r/predictions").mkdir(parents=True)
    shutil.copy("a.fasta", "r/predictions/x.fasta")
    os.symlink("r/predictions/x.fasta", "elsewhere.fasta")
    shutil.copytree("run", "r", dirs_exist_ok=True)
    for path in ("r/predictions/x.fasta", "elsewhere.fasta"):
        said = refused(*trained(path, "-o", "r", "--overwrite"))
        assert "x.fasta" in said or "elsewhere" in said
    assert Path("r/predictions/x.fasta").read_bytes() == Path("a.fasta").read_bytes()
    assert Path("r/checkpoints/best/model.safetensors").is_file()


@pytest.mark.parametrize("link", [False, True])
def test_a_run_does_not_write_its_files_over_its_labels(folder: Path, link: bool) -> None:
    Path("r").mkdir()
    if link:
        os.link("labels.tsv", "r/metrics.jsonl")
        labels = "labels.tsv"
    else:
        shutil.copy("labels.tsv", "r/splits.tsv")
        labels = "r/splits.tsv"
    asked = ["train", "--train", "a.fasta", "--labels", labels, *SMALL, "-o", "r"]
    assert ("r/metrics.jsonl" if link else labels) in refused(*asked)
    assert labels in refused(*asked, "--overwrite")
    assert Path(labels).read_bytes() == Path("labels.tsv").read_bytes()


def test_a_run_may_lie_beside_its_data(folder: Path) -> None:
    worked(*trained("a.fasta", "-o", ".", "--dry-run"))


def test_a_run_and_its_config_folder_are_two(folder: Path) -> None:
    Path("mine").mkdir()
    Path("mine/config.yaml").write_text("defaults: []\n")
    done = run(*trained("a.fasta", "-d", "mine", "-o", "mine"))
    assert isinstance(done.exception, SeqtrainError)
    assert Path("mine/config.yaml").read_text() == "defaults: []\n"


def test_a_comparison_keeps_out_of_the_folder_of_its_data(folder: Path) -> None:
    Path("c").mkdir()
    shutil.copy("a.fasta", "c/a.fasta")
    command = ("compare-norms", "--train", "c/a.fasta", "--labels", "labels.tsv", *SMALL)
    assert "c/a.fasta" in refused(*command, "-o", "c")


def test_standard_input_is_an_input_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("a.fasta").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        with pytest.raises(ConfigError, match="standard input"):
            check_outputs([Output("--output", Path("a.fasta"))], ["-"], overwrite=True)


@pytest.mark.parametrize("name", ["splits.tsv", "summary.json", "metrics.jsonl"])
def test_train_replaces_no_file_that_no_run_made(made: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    command = ["train", "--train", made / "a.fasta", "--labels", made / "labels.tsv", *SMALL]
    said = refused(*command, "-o", tmp_path)
    assert name in said
    assert "--overwrite" in said
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]
