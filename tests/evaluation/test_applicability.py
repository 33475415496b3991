"""Records unlike those of the training are told, those like them hardly ever."""

import json

import numpy as np
import pytest
from tiny_models import TOKENIZER

from seqtrain.data.alphabet import ALPHABETS
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.evaluation.applicability import TrainingRange

VOCAB = TOKENIZER.vocab_size
USUAL = np.random.default_rng(1).dirichlet(np.full(20, 5.0))


def drawn(lengths: np.ndarray, seed: int, spread: float = 0.0) -> list[np.ndarray]:
    """Records of the usual composition; with ``spread`` each has one of its own around it."""
    draw = np.random.default_rng(seed)
    shares = [draw.dirichlet(USUAL / spread) if spread else USUAL for _ in lengths]
    return [
        draw.choice(np.arange(1, 21), n, p=p).astype(np.uint8)
        for n, p in zip(lengths, shares, strict=True)
    ]


def range_of(tokens: list[np.ndarray]) -> TrainingRange:
    return TrainingRange.of(SequenceDataset.from_lists([""] * len(tokens), tokens), VOCAB)


@pytest.mark.parametrize("spread", [0.0, 0.02])
def test_one_in_a_thousand_of_the_training_is_called_unusual_at_any_length(spread: float) -> None:
    lengths = np.random.default_rng(0).integers(5, 400, 6000)
    known = range_of(drawn(lengths, 0, spread))
    for chosen in (np.arange(5, 60), np.arange(300, 400)):
        new = drawn(np.tile(chosen, 40), 7, spread)
        said = known.warnings(new, TOKENIZER)
        assert sum("composition" in each for each in said) / len(said) < 0.01
    assert known.overdispersion == pytest.approx(spread / 1.02, abs=0.012)


def test_records_of_another_composition_are_told() -> None:
    lengths = np.random.default_rng(0).integers(50, 200, 2000)
    known = range_of(drawn(lengths, 0, 0.02))
    low_complexity = np.tile(np.array([1, 2, 3], np.uint8), 40)
    assert known.warnings([low_complexity], TOKENIZER) == [("composition",)]
    one_unknown = np.append(drawn(np.array([100]), 3)[0], VOCAB - 1).astype(np.uint8)
    assert known.warnings([one_unknown], TOKENIZER) == [()]


def test_lengths_outside_the_training_are_told() -> None:
    known = TrainingRange(10, 20)
    tokens = drawn(np.array([9, 10, 20, 21]), 0)
    assert known.warnings(tokens, TOKENIZER) == [("length",), (), (), ("length",)]
    assert known.warnings([], TOKENIZER) == []


def test_nucleotides_given_to_a_protein_model_are_told() -> None:
    known = TrainingRange(1, 1000)
    dna = TOKENIZER.encode("ACGTTGCAAC" * 5)
    rna = TOKENIZER.encode("ACGUUGCAAC" * 5)
    short = TOKENIZER.encode("ACGTACGT")
    protein = TOKENIZER.encode("MKVLAAGIVGLLALAGCSSGAC" * 3)
    found = known.warnings([dna, rna, short, protein], TOKENIZER)
    assert found == [("alphabet",), ("alphabet",), (), ()]


def test_letters_that_a_nucleotide_model_does_not_know_are_told() -> None:
    tokenizer = Tokenizer(ALPHABETS["dna"], other="unknown")
    known = TrainingRange(1, 1000)
    tokens = [tokenizer.encode("MKVLEEFWYLIPQ" * 4), tokenizer.encode("ACGTN" * 10)]
    assert known.warnings(tokens, tokenizer) == [("alphabet",), ()]


def test_a_range_comes_back_from_the_report_of_a_run() -> None:
    known = range_of(drawn(np.arange(5, 60), 0))
    report = json.loads(json.dumps({"training_range": known.to_dict()}))
    assert TrainingRange.from_report(report) == known


def test_older_runs_know_their_lengths_or_nothing() -> None:
    lengths = {"min": 4.0, "median": 30.0, "max": 90.0}
    older = TrainingRange.from_report({"parts": {"train": {"lengths": lengths}}})
    assert older == TrainingRange(4, 90)
    assert older.warnings(drawn(np.array([91, 50]), 0), TOKENIZER) == [("length",), ()]
    assert TrainingRange.from_report({}) is None


def test_the_summary_says_how_many_and_of_what() -> None:
    found = TrainingRange(4, 1200).sentences({"length": 3, "alphabet": 0, "ok": 9}, 12, "protein")
    assert found == [
        "3 of 12 records (25.0%) are shorter or longer than any training record (4 to 1,200)"
    ]


def test_a_training_of_one_record_has_a_range_too() -> None:
    known = range_of(drawn(np.array([30]), 0))
    assert (known.shortest, known.longest) == (30, 30)
    assert known.warnings(drawn(np.array([30]), 0), TOKENIZER) == [()]


def test_long_records_are_counted_in_pieces_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = drawn(np.array([3, 700, 20, 90]), 3)
    known = range_of(tokens)
    monkeypatch.setattr("seqtrain.evaluation.applicability._MANY_TOKENS", 64)
    assert range_of(tokens) == known
    assert known.warnings(tokens, TOKENIZER) == range_of(tokens).warnings(tokens, TOKENIZER)
