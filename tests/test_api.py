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
from seqtrain.training.calibration import Calibration

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


def calibrated_run(folder: Path, encoder: str) -> Path:
    run = tiny_run(folder, encoder=encoder)
    (run / "calibration.json").write_text(Calibration((2.0,), "valid", 9, 0.2, 0.1).to_json())
    return run


def test_a_list_of_runs_is_an_ensemble(tmp_path: Path) -> None:
    paths = [calibrated_run(tmp_path / name, name) for name in ("cnn", "transformer")]
    each = [load_model(path, "cpu").predict(SEQUENCES) for path in paths]
    ensemble = load_model(paths, "cpu")
    for together, *members in zip(ensemble.predict(SEQUENCES), *each, strict=True):
        values = np.array([member.values for member in members])
        assert np.allclose(together.values, values.mean(axis=0), atol=1e-6)
        assert np.allclose(together.spread, values.std(axis=0, ddof=1), atol=1e-6)
        assert np.allclose(together.members, values, atol=1e-6)
        assert together.probabilities is not None
        assert together.probabilities["b"] == pytest.approx(values[:, 1].mean(), abs=1e-6)
    assert each[0][0].spread is None
    assert each[0][0].members == ()
    assert ensemble.calibration == "2 of 2 models calibrated by temperature scaling"
    for asked in (lambda: ensemble.module, lambda: ensemble.embed(["MKV"])):
        with pytest.raises(ConfigError, match="an ensemble has several modules"):
            asked()
    with pytest.raises(ConfigError, match="expected at least one run"):
        load_model([])
    with pytest.raises(ConfigError, match="cannot answer together"):
        load_model([paths[0], tiny_run(tmp_path / "other", "regression")], "cpu")


def test_probabilities_are_calibrated_unless_told_otherwise(tmp_path: Path) -> None:
    path = calibrated_run(tmp_path / "run", "cnn")
    calibrated, plain = load_model(path, "cpu"), load_model(path, "cpu", calibrated=False)
    assert "T = 2" in calibrated.calibration
    assert plain.calibration == "uncalibrated"
    for soft, sharp in zip(calibrated.predict(SEQUENCES), plain.predict(SEQUENCES), strict=True):
        assert soft.values is not None
        assert sharp.values is not None
        square = soft.values**2
        assert np.allclose(sharp.values, square / square.sum(), atol=1e-5)
        assert soft.prediction == sharp.prediction


def test_long_sequences_are_read_in_windows_and_warned_of(model: TrainedModel) -> None:
    text = "ACDEFGHIKLMNPQRSTVWY" * 5
    (whole,) = model.predict([text])
    (found,) = model.predict([text], window=40, overlap=10)
    parts = [answer.values for answer in model.predict([text[:40], text[30:70], text[60:]])]
    assert found.values is not None
    assert np.allclose(found.values, np.mean(parts, axis=0), rtol=1e-4, atol=0)
    assert not np.allclose(found.values, whole.values, rtol=1e-2, atol=0)
    assert found.warnings == ("length",)  # the tiny runs were trained on 4 to 90 residues
    assert model.predict(["MKVLA"])[0].warnings == ()
    with pytest.raises(ConfigError, match="no --window"):
        model.predict([text], overlap=3)


@pytest.mark.slow
def test_the_types_are_those_that_a_user_sees() -> None:
    """``reveal_type`` as a test: in seconds where mypy has checked the package before."""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "mypy", "tests/typed_api.py"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
