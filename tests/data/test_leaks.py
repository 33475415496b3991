"""Warnings of copies and near-copies between splits."""

import time

import numpy as np
import pytest

from seqtrain.data import leaks
from seqtrain.data.alphabet import ALPHABETS
from seqtrain.data.corruption import Corruption, restored
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.leaks import leak_warnings, record_hashes
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.evaluation.applicability import alphabet_warning

TOKENIZER = Tokenizer(ALPHABETS["protein"])


def as_dataset(sequences: list[str]) -> SequenceDataset:
    arrays = [TOKENIZER.encode(sequence) for sequence in sequences]
    return SequenceDataset.from_lists([str(i) for i in range(len(sequences))], arrays)


def random_sequences(
    seed: int, count: int, length: int, letters: str = "ACDEFGHIKLMNPQRSTVWY"
) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(letters), length)) for _ in range(count)]


def test_equal_residues_have_equal_hashes_wherever_they_stand() -> None:
    one = record_hashes(as_dataset(["ACD", "W", "ACD", "AC"]))
    other = record_hashes(as_dataset(["AC", "ACDW", "ACD"]))
    assert one.tolist() == [one[0], one[1], one[0], other[0]]
    assert other[2] == one[0]
    assert len({*one.tolist(), *other.tolist()}) == 4


def test_copies_and_near_copies_are_told_by_split() -> None:
    train, valid, test = (random_sequences(seed, 30, 60) for seed in range(3))
    test[:5] = train[:5]
    test[5:7] = valid[:2]
    valid[2:5] = [text[:30] + "WWW" + text[33:] for text in train[10:13]]
    found = leak_warnings(
        {"train": as_dataset(train), "valid": as_dataset(valid), "test": as_dataset(test)}
    )
    assert found[:2] == [
        "5 of 30 test records are exact copies of train records",
        "2 of 30 test records are exact copies of valid records",
    ]
    assert found[2].startswith("3 of 30 valid records are similar to train records (80% or more")
    assert found[2].endswith("data.split_method=similarity keeps such records together")
    assert len(found) == 3


def test_nothing_is_said_of_unrelated_parts_or_one_part_alone() -> None:
    train, valid = (as_dataset(random_sequences(seed, 20, 40)) for seed in range(2))
    assert leak_warnings({"train": train, "valid": valid, "test": as_dataset([])}) == []
    assert leak_warnings({"train": train}) == []
    twice = as_dataset(random_sequences(0, 3, 40) * 2)
    assert leak_warnings({"train": twice, "valid": valid}) == []


def test_of_many_residues_a_part_is_compared_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leaks, "MAX_RESIDUES", 20_000)
    (parent,) = random_sequences(0, 1, 100)
    rng = np.random.default_rng(1)
    places, letters = rng.integers(0, 100, 400), rng.choice(list("ACDEFGHIK"), 400)
    family = [parent[:i] + x + parent[i + 1 :] for i, x in zip(places, letters, strict=True)]
    (*_, said) = leak_warnings(
        {"train": as_dataset(family[:300]), "test": as_dataset(family[300:])}
    )
    assert said.startswith("at least ")
    assert "of 100 test records are similar to train records" in said


def test_of_a_family_of_variants_no_other_split_is_advised() -> None:
    (parent,) = random_sequences(0, 1, 30)
    family = [parent[:i] + "W" + parent[i + 1 :] for i in range(30)]
    (said,) = leak_warnings({"train": as_dataset(family[:20]), "test": as_dataset(family[20:])})
    assert said.startswith("10 of 10 test records are similar")
    assert said.endswith("in a family of variants no split keeps them apart")


def test_large_parts_cost_seconds_at_most() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(100, 300, 8_000)
    tokens = rng.integers(1, 21, lengths.sum()).astype(np.uint8)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    whole = SequenceDataset([str(i) for i in range(8_000)], tokens, offsets)
    parts = {
        "train": whole.subset(np.arange(6_000)),
        "test": whole.subset(np.arange(6_000, 8_000)),
    }
    began = time.process_time()
    assert leak_warnings(parts) == []
    assert time.process_time() - began < 20


def test_hidden_letters_are_shown_again() -> None:
    whole = as_dataset(random_sequences(0, 10, 30))
    hidden = Corruption.for_evaluation(TOKENIZER)(whole)
    assert (hidden.tokens != whole.tokens).any()
    assert (restored(hidden, TOKENIZER.vocab_size).tokens == whole.tokens).all()
    assert restored(whole, TOKENIZER.vocab_size) is whole


@pytest.mark.parametrize("length", [12, 200])
def test_a_few_records_of_another_alphabet_are_told(length: int) -> None:
    dna = random_sequences(0, 20, length, "ACGT")
    said = alphabet_warning(as_dataset(dna), TOKENIZER, "test records")
    assert said == "20 of 20 test records look like nucleotides, but are read as protein"
    assert (
        alphabet_warning(as_dataset(random_sequences(0, 20, length)), TOKENIZER, "records") is None
    )
    mixed = as_dataset(random_sequences(1, 80, 200) + random_sequences(0, 20, 200, "ACGT"))
    said = alphabet_warning(mixed, TOKENIZER, "records")
    assert said == "20 of 100 records look like nucleotides, but are read as protein"
