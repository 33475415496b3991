"""Predictions for a stream: one per entry, in order, in constant memory."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CODECS, TOKENIZER, tiny_model

from seqtrain.data.alphabet import ALPHABETS
from seqtrain.data.fasta import Record, Reject
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.errors import DataError, FastaError
from seqtrain.evaluation import chunks as room
from seqtrain.evaluation.predict import Prediction, Predictor

TASKS = sorted(CODECS)
LETTERS = TOKENIZER.alphabet.letters


def record(index: int, sequence: str) -> Record:
    return Record(f"r{index}", "", sequence, "x.fasta", 2 * index + 1, index)


def reject(index: int) -> Reject:
    return Reject(f"r{index}", "the sequence is empty", "x.fasta", 2 * index + 1, index)


def predict(
    task: str,
    entries: list[Record | Reject] | Iterator[Record | Reject],
    on_error: str = "skip",
    tokenizer: Tokenizer = TOKENIZER,
    max_tokens: int = 50,
) -> list[Prediction]:
    models = [tiny_model(task=task)]
    ask = Predictor(models, tokenizer, CODECS[task], max_tokens, on_error=on_error)
    return list(ask(iter(entries)))


def alone(task: str, sequence: str) -> np.ndarray:
    """The readout for one sequence, by the model itself."""
    model = tiny_model(task=task)
    tokens = torch.from_numpy(TOKENIZER.encode(sequence).astype(np.int64))[None]
    with torch.no_grad():
        logits = model(tokens, torch.tensor([tokens.shape[1]]))
        readout: np.ndarray = model.head.readout(logits)[0].numpy()
    return readout


entries_drawn = st.lists(st.none() | st.text(LETTERS, min_size=1, max_size=30), max_size=12)


@pytest.mark.parametrize("task", TASKS)
@given(sequences=entries_drawn, chunk=st.integers(1, 5))
@settings(max_examples=10)
def test_order_and_count_are_those_of_the_input(
    task: str, sequences: list[str | None], chunk: int
) -> None:
    entries = [reject(i) if text is None else record(i, text) for i, text in enumerate(sequences)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "CHUNK_RECORDS", chunk)
        found = predict(task, entries)
    assert [p.id for p in found] == [entry.id for entry in entries]
    for prediction, text in zip(found, sequences, strict=True):
        if text is None:
            assert prediction.values is None
            assert (prediction.length, prediction.status) == (0, "the sequence is empty")
        else:
            assert prediction.values is not None
            assert (prediction.length, prediction.status) == (len(text), "ok")
            np.testing.assert_allclose(prediction.values, alone(task, text), atol=2e-5)


def test_nothing_but_bad_records_is_an_answer_too() -> None:
    assert [p.status for p in predict("classification", [reject(0), reject(1)])] == [
        "the sequence is empty"
    ] * 2
    assert predict("classification", []) == []


def test_a_letter_that_the_tokenizer_refuses_makes_a_reject() -> None:
    nucleotides = Tokenizer(ALPHABETS["dna"])
    found = predict(
        "classification",
        [record(0, "ACGT"), record(1, "ACQT"), record(2, "AC--"), record(3, "--")],
        tokenizer=nucleotides,
    )
    assert [p.status == "ok" for p in found] == [True, False, True, False]
    assert "'Q'" in found[1].status
    assert (found[2].length, found[3].length) == (2, 0)


def test_dropped_letters_are_marked_so_that_residues_stay_in_place() -> None:
    (found,) = predict("residue_classification", [record(0, "AC-DE*")])
    assert found.kept is not None
    assert found.values is not None
    assert found.kept.tolist() == [True, True, False, True, True, False]
    assert found.values.shape == (4, 3)
    np.testing.assert_allclose(found.values, alone("residue_classification", "ACDE"), atol=2e-5)


def test_failing_names_every_bad_record_of_the_chunk() -> None:
    entries = [record(0, "ACD"), reject(1), record(2, "AC?"), reject(3)]
    with pytest.raises(FastaError) as caught:
        predict("classification", entries, on_error="fail")
    message = str(caught.value)
    assert all(name in message for name in ("'r1'", "'r2'", "'r3'", "--on-error skip"))
    assert "'r0'" not in message


def test_a_refusal_says_that_the_sequences_are_of_another_alphabet() -> None:
    nucleotides = Tokenizer(ALPHABETS["dna"])
    entries: list[Record | Reject] = [record(0, "MKVLEEFWYLIPQ" * 5)]
    with pytest.raises(FastaError, match="look like protein; the model reads dna"):
        predict("classification", entries, on_error="fail", tokenizer=nucleotides)


def test_a_failing_chunk_comes_after_the_answers_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CHUNK_RECORDS", 2)
    entries = [record(0, "ACD"), record(1, "ACD"), reject(2)]
    stream = Predictor([tiny_model()], TOKENIZER, CODECS["classification"], 50)(iter(entries))
    assert [next(stream).id for _ in range(2)] == ["r0", "r1"]
    with pytest.raises(FastaError):
        next(stream)


@pytest.mark.parametrize(("records", "residues"), [(3, 10**9), (10**9, 30)])
def test_the_input_is_never_read_far_ahead(
    monkeypatch: pytest.MonkeyPatch, records: int, residues: int
) -> None:
    """Constant memory: a chunk is bounded in records and in residues."""
    monkeypatch.setattr(room, "CHUNK_RECORDS", records)
    monkeypatch.setattr(room, "CHUNK_RESIDUES", residues)
    taken = 0

    def endless() -> Iterator[Record | Reject]:
        nonlocal taken
        while True:
            yield record(taken, "ACDEFGHIKL")
            taken += 1

    stream = Predictor([tiny_model()], TOKENIZER, CODECS["classification"], 50)(endless())
    for number in range(10):
        next(stream)
        assert taken <= number + 3


def test_a_record_longer_than_the_budget_is_predicted() -> None:
    text = LETTERS * 20
    (found,) = predict("classification", [record(0, text)], max_tokens=5)
    assert found.values is not None
    np.testing.assert_allclose(found.values, alone("classification", text), atol=2e-5)


@pytest.mark.parametrize("task", TASKS)
def test_an_output_that_is_not_finite_is_no_prediction(task: str) -> None:
    """One token's embedding has overflowed; records without it are not concerned."""
    model = tiny_model(task=task)
    with torch.no_grad():
        model.encoder.embedding.weight[TOKENIZER.encode("W").astype(np.int64)] = torch.inf
    ask = Predictor([model], TOKENIZER, CODECS[task], 50, on_error="skip")
    entries = [record(0, "MKVL"), record(1, "MKWL"), record(2, "AAAC")]
    first, bad, last = ask(iter(entries))
    assert (first.status, last.status) == ("ok", "ok")
    assert np.isfinite(first.values).all()
    assert np.isfinite(last.values).all()
    assert bad.values is None
    assert "output is not finite" in bad.status
    with pytest.raises(DataError, match=r"x\.fasta, record 'r1': the model's output is not finite"):
        list(replace(ask, on_error="fail")(iter(entries)))
