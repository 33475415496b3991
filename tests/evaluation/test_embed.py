"""`seqtrain embed`: files that hold what the model says, in input order, in either format."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_models import TOKENIZER
from tiny_runs import random_fasta, tiny_run
from typer.testing import CliRunner

from seqtrain import TrainedModel, load_model
from seqtrain.cli.main import app
from seqtrain.data.fasta import Record, Reject
from seqtrain.errors import ConfigError, DataError, FastaError
from seqtrain.evaluation import embed
from seqtrain.nn.model import SequenceModel

PAGE = Path(__file__).parents[2] / "docs" / "predict.md"
LENGTHS = [9, 1, 30, 4]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def model(run: Path) -> TrainedModel:
    return load_model(run, device="cpu")


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    """Four records, and two that cannot be read."""
    path = random_fasta(tmp_path / "x.fasta", LENGTHS)
    good = path.read_text().split(">")[1:]
    path.write_text(">" + ">".join([good[0], "bad1\nMK1\n", *good[1:], "bad2\n---\n"]))
    return path


def good_records(fasta: Path) -> list[str]:
    records = fasta.read_text().split(">")[1:]
    return [text.split()[1] for text in records if text.startswith("r")]


def embed_file(run: Path, fasta: Path, output: Path, *options: str) -> None:
    command = ["embed", str(run), str(fasta), "-o", str(output), "--device", "cpu", *options]
    said = CliRunner().invoke(app, command, catch_exceptions=False)
    assert said.exit_code == 0, said.output


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_npz_holds_one_row_per_record_and_nan_for_bad_ones(
    run: Path, model: TrainedModel, fasta: Path, tmp_path: Path, dtype: str
) -> None:
    embed_file(run, fasta, tmp_path / "e.npz", "--on-error", "skip", "--dtype", dtype)
    with np.load(tmp_path / "e.npz", allow_pickle=False) as arrays:
        assert arrays["ids"].tolist() == ["r0", "bad1", "r1", "r2", "r3", "bad2"]
        assert arrays["lengths"].tolist() == [9, 0, 1, 30, 4, 0]
        assert (arrays["status"] == "ok").tolist() == [True, False, True, True, True, False]
        rows = arrays["embeddings"]
    assert rows.dtype == dtype
    assert np.isnan(rows[[1, 5]]).all()
    expected = model.embed(good_records(fasta)).astype(dtype)
    assert np.allclose(rows[[0, 2, 3, 4]], expected, atol=1e-3 if dtype == "float16" else 1e-6)


def test_npz_per_residue_holds_all_rows_end_to_end(
    run: Path, model: TrainedModel, fasta: Path, tmp_path: Path
) -> None:
    embed_file(run, fasta, tmp_path / "e.npz", "--on-error", "skip", "--per-residue")
    with np.load(tmp_path / "e.npz", allow_pickle=False) as arrays:
        offsets, rows = arrays["offsets"], arrays["embeddings"]
    expected = model.embed(good_records(fasta), per_residue=True)
    for place, vectors in zip([0, 2, 3, 4], expected, strict=True):
        assert np.allclose(rows[offsets[place] : offsets[place + 1]], vectors, atol=1e-6)
    assert len(rows) == sum(LENGTHS)


@pytest.mark.parametrize("per_residue", [False, True])
def test_parquet_holds_the_same(
    run: Path, model: TrainedModel, fasta: Path, tmp_path: Path, per_residue: bool, monkeypatch
) -> None:
    monkeypatch.setattr(embed, "ROWS_PER_GROUP", 2)
    options = ["--per-residue"] if per_residue else []
    embed_file(run, fasta, tmp_path / "e.parquet", "--on-error", "skip", *options)
    rows = pq.read_table(tmp_path / "e.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["r0", "bad1", "r1", "r2", "r3", "bad2"]
    assert [row["length"] for row in rows] == [9, 0, 1, 30, 4, 0]
    assert rows[1]["embedding"] is None
    found = [row["embedding"] for row in rows if row["status"] == "ok"]
    for vectors, expected in zip(
        found, model.embed(good_records(fasta), per_residue=per_residue), strict=True
    ):
        assert np.allclose(vectors, expected, atol=1e-6)


def test_wrong_names_and_bad_records_leave_no_file(run: Path, fasta: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.npz or \.parquet"):
        embed_file(run, fasta, tmp_path / "e.csv")
    with pytest.raises(ConfigError, match="--pooling"):
        embed_file(run, fasta, tmp_path / "e.npz", "--pooling", "sum")
    with pytest.raises(FastaError, match="bad1"):
        embed_file(run, fasta, tmp_path / "e.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["x.fasta"]


def test_vectors_of_residues_are_held_a_few_at_a_time(
    model: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk of records is fine for one vector each, not for one per residue."""
    monkeypatch.setattr(embed, "CHUNK_NUMBERS", 8 * 20)  # 8 channels: 20 residues
    taken = 0

    def endless() -> Iterator[Record | Reject]:
        nonlocal taken
        while True:
            yield Record(f"r{taken}", "", "MKVLAAGWWW", "x", 1, taken)
            taken += 1

    assert isinstance(model.module, SequenceModel)
    stream = embed.embed_records(
        model.module, TOKENIZER, endless(), max_tokens=100, per_residue=True
    )
    for number in range(6):
        next(stream)
        assert taken <= number + 3


def test_the_examples_of_the_documentation_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fasta = random_fasta(tmp_path / "records.fasta", [30, 40, 20] * 10)
    embed_file(run, fasta, tmp_path / "records.npz")
    embed_file(run, fasta, tmp_path / "residues.npz", "--per-residue")
    rows = "".join(f"r{i}\t{'ab'[i % 2]}\ttrain\n" for i in range(30))
    (tmp_path / "labels.tsv").write_text("id\tlabel\tsplit\n" + rows)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(import .*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    for code in blocks:
        assert "umap" not in code
        names: dict[str, object] = {}
        exec(code, names)
    assert names["vectors"].shape == (20, 8)  # type: ignore[attr-defined]


def test_a_vector_that_is_not_finite_is_none(model: TrainedModel) -> None:
    """Numbers beyond 65,504 are none of float16."""
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        module.encoder.embedding.weight[1:] = 1e5
    entries = [Record("a", "", "MKVL", "x.fasta", 1, 0)]

    def embedded(dtype: str, on_error: str = "skip") -> embed.Embedding:
        options = {"max_tokens": 50, "layer": 0, "dtype": dtype, "on_error": on_error}
        (one,) = embed.embed_records(module, TOKENIZER, iter(entries), **options)
        return one

    assert embedded("float32").status == "ok"
    narrow = embedded("float16")
    assert narrow.values is None
    assert narrow.status.endswith("or those of float16")
    with pytest.raises(DataError, match=r"x\.fasta, record 'a'"):
        embedded("float16", "fail")
