"""``load_model`` in three lines: every kind of input, the results of the command line."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from Bio.Seq import Seq
from Bio.SeqRecord import SeqRecord
from tiny_models import CODECS, TOKENIZER
from tiny_runs import random_fasta, tiny_run

from seqtrain import TrainedModel, load_model
from seqtrain.data.fasta import read_fasta
from seqtrain.errors import ConfigError, FastaError

SEQUENCES = ["MKV", "ACDEFGHIKL", "W", "MKVLAAGWMKVLAAGW"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return load_model(tiny_run(tmp_path_factory.mktemp("run")), device="cpu")


def alone(model: TrainedModel, sequence: str) -> torch.Tensor:
    tokens = torch.from_numpy(TOKENIZER.encode(sequence).astype(np.int64))[None]
    logits = model.module(tokens, torch.tensor([tokens.shape[1]]))
    return logits.softmax(-1)[0].detach()


def test_seqtrain_alone_does_not_import_torch() -> None:
    code = "import sys, seqtrain; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_answers_are_those_of_each_sequence_alone(model: TrainedModel) -> None:
    for answer, sequence in zip(model.predict(SEQUENCES), SEQUENCES, strict=True):
        expected = alone(model, sequence)
        assert torch.allclose(torch.from_numpy(answer.values), expected, atol=1e-5)
        assert answer.prediction == "abc"[int(expected.argmax())]
        assert answer.probabilities == dict(zip("abc", answer.values.tolist(), strict=True))
        assert answer.length == len(sequence)


def as_generator(sequences: list[str]) -> Iterator[str]:
    yield from sequences


def as_records(sequences: list[str]) -> list[SeqRecord]:
    return [SeqRecord(Seq(sequence), id=f"r{i}") for i, sequence in enumerate(sequences)]


@pytest.mark.parametrize("form", [tuple, as_generator, as_records])
def test_every_kind_of_input_says_the_same(
    model: TrainedModel, form: Callable[[list[str]], Any]
) -> None:
    expected = [answer.values for answer in model.predict(SEQUENCES)]
    found = [answer.values for answer in model.predict(form(SEQUENCES))]
    assert np.array_equal(found, expected)


def test_a_file_gives_its_records(model: TrainedModel, tmp_path: Path) -> None:
    path = random_fasta(tmp_path / "x.fasta", [5, 9])
    sequences = [record.sequence for record in read_fasta([path])]
    expected = [answer.values for answer in model.predict(sequences)]
    for given in (path, str(path), [path]):
        answers = model.predict(given)
        assert [answer.id for answer in answers] == ["r0", "r1"]
        assert np.array_equal([answer.values for answer in answers], expected)


def test_a_string_alone_is_one_sequence_unless_it_names_a_file(model: TrainedModel) -> None:
    (answer,) = model.predict("MKV")
    assert (answer.id, answer.length) == ("sequence_1", 3)
    with pytest.raises(FastaError, match="no such file"):
        model.predict("missing.fasta")


def test_a_bad_sequence_is_named_or_skipped(model: TrainedModel) -> None:
    with pytest.raises(FastaError, match=r"'sequence_2'.*residue 3: '1'"):
        model.predict(["MKV", "MK1"])
    first, second = model.predict(["MKV", "MK1"], on_error="skip")
    assert first.status == "ok"
    assert "residue 3" in second.status
    assert (second.prediction, second.values) == (None, None)
    with pytest.raises(ConfigError, match="on_error"):
        model.predict([], on_error="ignore")
    with pytest.raises(TypeError, match="found 7"):
        model.predict([7])


def test_no_sequences_give_no_answers(model: TrainedModel) -> None:
    assert model.predict([]) == []
    assert model.embed([]).shape == (0, 8)


@pytest.mark.parametrize("task", ["multilabel", "regression", "residue_classification"])
def test_answers_of_the_other_tasks(task: str, tmp_path: Path) -> None:
    model = load_model(str(tiny_run(tmp_path, task)), device="cpu")
    assert (model.task, model.classes, model.alphabet) == (task, CODECS[task].classes, "protein")
    (answer,) = model.predict(["MK-V"])
    assert answer.values is not None
    if task == "regression":
        assert answer.prediction == pytest.approx(float(answer.values))
    elif task == "multilabel":
        assert answer.probabilities is not None
        named = [name for name, p in answer.probabilities.items() if p > 0.5]
        assert answer.prediction == ",".join(named)
    else:
        names = [CODECS[task].classes[i] for i in answer.values.argmax(1)]
        assert answer.prediction == f"{names[0]}{names[1]}-{names[2]}"


def test_embeddings_are_means_of_residues_of_each_sequence_alone(model: TrainedModel) -> None:
    whole = model.embed(SEQUENCES)
    residues = model.embed(SEQUENCES, per_residue=True)
    assert [len(rows) for rows in residues] == [len(sequence) for sequence in SEQUENCES]
    for sequence, vector, rows in zip(SEQUENCES, whole, residues, strict=True):
        assert np.allclose(model.embed([sequence])[0], vector, atol=1e-5)
        assert np.allclose(rows.mean(axis=0), vector, atol=1e-5)
    highest = model.embed(SEQUENCES, pooling="max")
    assert np.allclose(highest, [rows.max(axis=0) for rows in residues])


@pytest.mark.parametrize("encoder", ["cnn", "transformer"])
def test_layers_count_from_the_embedding(encoder: str, tmp_path: Path) -> None:
    model = load_model(tiny_run(tmp_path, encoder=encoder), device="cpu")
    parts = model.module.encoder
    (first,) = model.embed(["MKV"], per_residue=True, layer=0)
    tokens = torch.from_numpy(TOKENIZER.encode("MKV").astype(np.int64))
    assert np.array_equal(first, parts.embedding(tokens).detach().numpy())
    last = model.embed(["MKV"], layer=len(parts.blocks))
    assert np.allclose(last, model.embed(["MKV"])) == (encoder == "cnn")
    with pytest.raises(ConfigError, match="expected -1"):
        model.embed(["MKV"], layer=len(parts.blocks) + 1)
