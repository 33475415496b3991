"""Prediction tables: one row a record, the same in every format, whole or not at all."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_models import CODECS

from seqtrain.data.labels import LabelCodec
from seqtrain.errors import ConfigError
from seqtrain.evaluation.predict import Prediction
from seqtrain.evaluation.tables import Table
from seqtrain.evaluation.writing import check_format, write_predictions

TASKS = sorted(CODECS)
FORMATS = [".tsv", ".jsonl", ".parquet"]

REJECT = Prediction("bad", 0, "the sequence is empty; add it", None, None)


def made(task: str, name: str, length: int, seed: int) -> Prediction:
    """A prediction with probabilities that sum to 1."""
    rng = np.random.default_rng(seed)
    kept = np.array([True] * length + [False])
    if task == "regression":
        return Prediction(name, length, "ok", np.array(rng.normal() * 100, np.float32), kept)
    shapes = {"residue_classification": (length, 3), "residue_regression": (length,)}
    shapes["mlm"] = (length, 20)
    shape = shapes.get(task, (3,))
    raw = rng.random(shape)
    return Prediction(
        name, length, "ok", (raw / raw.sum(-1, keepdims=True)).astype(np.float32), kept
    )


def predictions(task: str) -> list[Prediction]:
    return [made(task, "a", 4, 0), REJECT, made(task, "c", 7, 1), made(task, "d", 1, 2)]


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a table; empty cells of a TSV are None."""
    match path.suffix:
        case ".parquet":
            return list(pq.read_table(path).to_pylist())
        case ".jsonl":
            return [json.loads(line) for line in path.read_text().splitlines()]
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    rows = csv.DictReader(lines[1:], delimiter="\t", quoting=csv.QUOTE_NONE)
    return [{key: value or None for key, value in cells.items()} for cells in rows]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("with_truth", [True, False])
def test_every_format_says_the_same(tmp_path: Path, task: str, with_truth: bool) -> None:
    truth = [1.5, 2.0, -3.25, 1e6] if task == "regression" else ["h", "e", "c", "hec"]
    tables = []
    for suffix in FORMATS:
        path = tmp_path / f"p{suffix}"
        form = Table(CODECS[task], extra=("target",) if with_truth else ())
        cells = ((value,) for value in truth) if with_truth else None
        assert write_predictions(path, predictions(task), form, cells) == 4
        tables.append(read(path))
    names = Table(CODECS[task]).columns + (["target"] if with_truth else [])
    for table in tables:
        assert [list(cells) for cells in table] == [names] * 4
        assert [cells["id"] for cells in table] == ["a", "bad", "c", "d"]
    for tsv, jsonl, parquet in zip(*tables, strict=True):
        for name in names:
            if isinstance(jsonl[name], float):
                assert float(tsv[name]) == pytest.approx(jsonl[name], rel=1e-6)
                assert parquet[name] == pytest.approx(jsonl[name], rel=1e-6)
            else:
                assert tsv[name] == (None if jsonl[name] in (None, "") else str(jsonl[name]))
                assert parquet[name] == jsonl[name]


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_numbers_are_numbers_in_parquet(tmp_path: Path, task: str) -> None:
    path = tmp_path / "p.parquet"
    truth = [0.5] * 4 if task == "regression" else ["a"] * 4
    form = Table(CODECS[task], extra=("target",))
    write_predictions(path, predictions(task), form, ((value,) for value in truth))
    kinds = {field.name: str(field.type) for field in pq.read_schema(path)}
    assert kinds["length"] == "int64"
    if task == "regression":
        assert kinds["prediction"] in ("float", "double")
        assert kinds["target"] in ("float", "double")
    else:
        assert kinds["prob_b"] == "float"
        assert kinds["target"] == "string"


def test_a_class_is_the_most_probable_one() -> None:
    codec = CODECS["classification"]
    values = np.array([0.2, 0.5, 0.3], np.float32)
    cells = Table(codec).row(Prediction("x", 9, "ok", values, None))
    assert cells[:4] == ["x", 9, "ok", "b"]
    assert cells[4:] == pytest.approx([0.2, 0.5, 0.3])


def test_labels_are_those_above_one_half_joined_as_they_came() -> None:
    codec = LabelCodec("multilabel", ("a", "b", "c"), separator="|")
    values = np.array([0.51, 0.5, 0.99], np.float32)
    assert Table(codec).row(Prediction("x", 9, "ok", values, None))[3] == "a|c"


def test_residues_are_one_letter_each_with_a_dash_for_those_not_read() -> None:
    codec = CODECS["residue_classification"]
    values = np.eye(3, dtype=np.float32)[[0, 0, 2]]
    kept = np.array([True, False, True, True, False])
    assert Table(codec).row(Prediction("x", 3, "ok", values, kept))[3] == "h-hc-"


def test_long_names_of_residue_classes_are_separated() -> None:
    codec = LabelCodec("residue_classification", ("helix", "c"))
    values = np.eye(2, dtype=np.float32)[[0, 1]]
    kept = np.array([True, True, False])
    assert Table(codec).row(Prediction("x", 2, "ok", values, kept))[3] == "helix,c,-"


def test_each_residue_has_the_probability_of_its_class_in_every_format(tmp_path: Path) -> None:
    codec = CODECS["residue_classification"]
    values = np.array([[0.5, 0.3, 0.2], [0.125, 0.125, 0.75]], np.float32)
    kept = np.array([True, False, True])
    for ending in FORMATS:
        path = tmp_path / f"p{ending}"
        write_predictions(path, [Prediction("x", 2, "ok", values, kept), REJECT], Table(codec))
        first, second = read(path)
        assert first["prediction_prob"] == "0.5,-,0.75"
        assert second["prediction_prob"] is None
    assert "prediction_prob" not in Table(CODECS["residue_regression"]).columns


@pytest.mark.parametrize("task", TASKS)
def test_a_reject_has_its_reason_and_nothing_else(task: str) -> None:
    cells = dict(zip(Table(CODECS[task]).columns, Table(CODECS[task]).row(REJECT), strict=True))
    assert cells.pop("status") == REJECT.status
    assert (cells.pop("id"), cells.pop("length")) == ("bad", 0)
    assert set(cells.values()) == {None}


@pytest.mark.parametrize("task", TASKS)
def test_the_table_says_what_its_numbers_are(tmp_path: Path, task: str) -> None:
    write_predictions(tmp_path / "p.tsv", [], Table(CODECS[task]))
    write_predictions(tmp_path / "p.parquet", [], Table(CODECS[task]))
    comment = (tmp_path / "p.tsv").read_text().splitlines()[0]
    words = "target's unit" if task.endswith("regression") else "probab"
    assert words in comment
    described = pq.read_schema(tmp_path / "p.parquet").metadata[b"description"].decode()
    assert comment == f"# {described}"


def test_no_cell_breaks_a_row(tmp_path: Path) -> None:
    """Names come from users: a tab in one must not become a column."""
    codec = LabelCodec("classification", ("a\tb", "c\nd"))
    prediction = Prediction("x", 1, "ok\n", np.array([0.9, 0.1], np.float32), None)
    form = Table(codec, extra=("target",))
    write_predictions(tmp_path / "p.tsv", [prediction], form, [("a\tb",)])
    _, header, cells = (tmp_path / "p.tsv").read_text().splitlines()
    assert header.split("\t") == [
        "id",
        "length",
        "status",
        "prediction",
        "prob_a b",
        "prob_c d",
        "target",
    ]
    assert len(cells.split("\t")) == 7


@pytest.mark.parametrize("members", [(), (1, 2)])
def test_classes_that_look_alike_have_columns_of_their_own(
    tmp_path: Path, members: tuple[int, ...]
) -> None:
    codec = LabelCodec("classification", ("a\tb", "a b", "a\rb"))
    values = np.array([0.5, 0.3, 0.2], np.float32)
    answers = tuple(values for _ in members)
    prediction = Prediction("x", 1, "ok", values, None, answers)
    form = Table(codec, num_members=max(1, len(members)))
    assert len(set(form.columns)) == len(form.columns)
    for suffix in FORMATS:
        write_predictions(tmp_path / f"p{suffix}", [prediction], form)
        (cells,) = read(tmp_path / f"p{suffix}")
        found = [float(cells[name]) for name in ("prob_a b", "prob_a b_2", "prob_a b_3")]
        np.testing.assert_allclose(found, values)


def test_unusual_names_survive_in_every_format(tmp_path: Path) -> None:
    codec = LabelCodec("classification", ('é "quoted"', "[red]"))
    values = np.array([0.75, 0.25], np.float32)
    for suffix in FORMATS:
        path = tmp_path / f"p{suffix}"
        write_predictions(path, [Prediction("sp|P1|ö", 3, "ok", values, None)], Table(codec))
        (cells,) = read(path)
        assert cells["id"] == "sp|P1|ö"
        assert cells["prediction"] == 'é "quoted"'
        assert float(cells["prob_[red]"]) == 0.25


def test_only_the_first_line_is_a_comment(tmp_path: Path) -> None:
    """An id may begin with the sign of a comment; readers skip one line, as the page says."""
    path = tmp_path / "p.tsv"
    names = ["#1", "a#2", "# 3"]
    write_predictions(
        path, [made("classification", n, 3, 0) for n in names], Table(CODECS["classification"])
    )
    assert [cells["id"] for cells in read(path)] == names
    page = (Path(__file__).parents[2] / "docs" / "predict.md").read_text()
    assert 'sep="\\t", skiprows=1, quoting=3' in page


def test_many_rows_are_written_in_groups(tmp_path: Path) -> None:
    codec = CODECS["regression"]
    count = 8192 * 2 + 3
    stream = (Prediction(f"s{i}", 1, "ok", np.array(i, np.float32), None) for i in range(count))
    assert write_predictions(tmp_path / "p.parquet", stream, Table(codec)) == count
    table = pq.read_table(tmp_path / "p.parquet")
    assert table["prediction"].to_pylist() == list(range(count))
    assert pq.ParquetFile(tmp_path / "p.parquet").num_row_groups >= 3


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_interrupted_write_leaves_the_file_of_before(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p{suffix}"
    path.write_bytes(b"old")

    def interrupted() -> Iterator[Prediction]:
        yield made("regression", "a", 3, 0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_predictions(path, interrupted(), Table(CODECS["regression"]))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_without_a_file_the_table_goes_to_standard_output(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_predictions(None, predictions("classification"), Table(CODECS["classification"]))
    write_predictions(
        tmp_path / "p.tsv", predictions("classification"), Table(CODECS["classification"])
    )
    assert capsys.readouterr().out == (tmp_path / "p.tsv").read_text()


@pytest.mark.parametrize("name", ["p.csv", "p", "p.TSV", "p.tsv.gz"])
def test_a_format_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"\.tsv, \.parquet, \.jsonl"):
        check_format(tmp_path / name)


def test_a_folder_that_is_not_there_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        check_format(tmp_path / "none" / "p.tsv")
    (tmp_path / "p.tsv").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        check_format(tmp_path / "p.tsv")
