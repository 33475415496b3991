"""What is hidden from a masked language model: by the record alone, in the shares of BERT."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import TOKENIZER

from seqtrain.data.alphabet import DNA, PROTEIN
from seqtrain.data.corruption import Corruption, count_letters
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.labels import IGNORE
from seqtrain.data.ragged import GATHERED
from seqtrain.data.tokenizer import Tokenizer

MASK = TOKENIZER.vocab_size
UNKNOWN = TOKENIZER.vocab_size - 1
sequences_drawn = st.lists(st.text(PROTEIN.letters + "X", max_size=40), min_size=1, max_size=8)
fractions = st.floats(0.01, 0.99)
seeds = st.integers(0, 2**63 - 1)


def dataset_of(*sequences: str) -> SequenceDataset:
    """An empty sequence is one without residues."""
    nothing = np.empty(0, np.uint8)
    tokens = [TOKENIZER.encode(text) if text else nothing for text in sequences]
    return SequenceDataset.from_lists([f"r{i}" for i in range(len(tokens))], tokens)


def random_dataset(num_records: int, length: int, seed: int = 0) -> SequenceDataset:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 21, (num_records, length)).astype(np.uint8)
    return SequenceDataset.from_lists([str(i) for i in range(num_records)], list(tokens))


def slow_corruption(
    residues: list[int], num_letters: int, key: int, corruption: Corruption
) -> tuple[list[int], list[int]]:
    """One record, residue by residue, in Python's own integers."""
    bits, step = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(x: int) -> int:
        x &= bits
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & bits
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & bits
        return x ^ (x >> 31)

    digest = sum(mix((i + 1) * step + token) for i, token in enumerate(residues)) & bits
    begin = mix(digest ^ key)
    draws = [mix(begin + (i + 1) * step) for i in range(len(residues))]
    letters = [i for i, token in enumerate(residues) if 1 <= token <= num_letters]
    hidden = [i for i in letters if (draws[i] >> 11) / 2**53 < corruption.fraction]
    if letters and not hidden:
        hidden = [min(letters, key=lambda i: draws[i])]
    shown, targets = list(residues), [IGNORE] * len(residues)
    for i in hidden:
        targets[i] = residues[i] - 1
        draw = mix(draws[i] + step)
        fate = (draw >> 11) / 2**53
        if fate < corruption.masked:
            shown[i] = corruption.mask_token
        elif fate < corruption.masked + corruption.replaced:
            shown[i] = 1 + mix(draw + step) % num_letters
    return shown, targets


@given(texts=sequences_drawn, fraction=fractions, seed=seeds, epoch=st.integers(0, 99))
def test_it_is_splitmix64_over_each_record_alone(
    texts: list[str], fraction: float, seed: int, epoch: int
) -> None:
    corruption = Corruption.for_training(TOKENIZER, fraction, seed)
    dataset = dataset_of(*texts)
    found = corruption(dataset, epoch)
    key = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0])
    for i in range(len(dataset)):
        shown, targets = slow_corruption(dataset.residues(i).tolist(), 20, key, corruption)
        assert found.residues(i).tolist() == shown
        assert found.target(i).tolist() == targets


@given(texts=sequences_drawn, seed=seeds, epoch=st.integers(0, 9), data=st.data())
def test_neither_the_others_nor_their_order_matter(
    texts: list[str], seed: int, epoch: int, data: st.DataObject
) -> None:
    corruption = Corruption.for_training(TOKENIZER, 0.3, seed)
    dataset = dataset_of(*texts)
    whole = corruption(dataset, epoch)
    order = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=12))
    part = corruption(dataset.subset(order), epoch)
    for place, record in enumerate(order):
        assert part.residues(place).tolist() == whole.residues(record).tolist()
        assert part.target(place).tolist() == whole.target(record).tolist()


@given(texts=sequences_drawn, fraction=fractions, seed=seeds)
def test_only_canonical_letters_are_hidden_and_one_at_least(
    texts: list[str], fraction: float, seed: int
) -> None:
    dataset = dataset_of(*texts)
    for corruption in (
        Corruption.for_training(TOKENIZER, fraction, seed),
        Corruption.for_evaluation(TOKENIZER),
    ):
        found = corruption(dataset)
        hidden = found.targets != IGNORE
        assert not hidden[dataset.tokens == UNKNOWN].any()
        assert (found.tokens[~hidden] == dataset.tokens[~hidden]).all()
        assert (found.targets[hidden] == dataset.tokens[hidden] - 1).all()
        for i in range(len(dataset)):
            has_letters = (dataset.residues(i) != UNKNOWN).any()
            assert (found.target(i) != IGNORE).any() == has_letters


def test_letters_that_are_kept_apart_are_no_targets() -> None:
    tokenizer = Tokenizer(DNA, ambiguous="keep")
    tokens = [tokenizer.encode("ACGTNRYKM" * 40)]
    dataset = SequenceDataset.from_lists(["r"], tokens)
    found = Corruption.for_training(tokenizer, 0.9, 0)(dataset)
    assert found.targets.max() == 3
    assert (found.tokens[dataset.tokens > 4] == dataset.tokens[dataset.tokens > 4]).all()
    assert (found.tokens == tokenizer.vocab_size).any()


def test_the_shares_are_those_of_bert() -> None:
    dataset = random_dataset(2000, 200)
    found = Corruption.for_training(TOKENIZER, 0.15, 7)(dataset)
    hidden = found.targets != IGNORE
    assert hidden.mean() == pytest.approx(0.15, abs=0.003)
    shown, own = found.tokens[hidden], dataset.tokens[hidden]
    assert (shown == MASK).mean() == pytest.approx(0.8, abs=0.007)
    # Of the replaced tenth, one letter in twenty is by chance its own.
    assert (shown == own).mean() == pytest.approx(0.1 + 0.1 / 20, abs=0.005)
    drawn = np.bincount(shown[(shown != MASK) & (shown != own)], minlength=21)[1:21]
    assert drawn.min() / drawn.sum() == pytest.approx(0.05, abs=0.01)
    where = np.flatnonzero(hidden.reshape(2000, 200).mean(axis=0) < 0.1)
    assert not len(where), "every position is as likely as any other"
    neighbours = hidden[1:][hidden[:-1]].mean()
    assert neighbours == pytest.approx(0.15, abs=0.01)


def test_what_is_asked_for_in_evaluation_is_never_in_sight() -> None:
    dataset = random_dataset(200, 100)
    found = Corruption.for_evaluation(TOKENIZER)(dataset)
    hidden = found.targets != IGNORE
    assert hidden.mean() == pytest.approx(0.15, abs=0.01)
    assert (found.tokens[hidden] == MASK).all()


def test_epochs_and_seeds_hide_other_letters_and_repeat_themselves() -> None:
    dataset = random_dataset(50, 100)
    first = Corruption.for_training(TOKENIZER, 0.15, 0)
    other = Corruption.for_training(TOKENIZER, 0.15, 1)
    views = [first(dataset, 0), first(dataset, 1), other(dataset, 0)]
    for i, a in enumerate(views):
        for b in views[:i]:
            both = ((a.targets != IGNORE) & (b.targets != IGNORE)).mean()
            assert both == pytest.approx(0.15**2, abs=0.006)
    assert first(dataset, 1).fingerprint() == views[1].fingerprint()


def test_more_records_than_are_drawn_at_once_are_hidden_alike() -> None:
    at_once = GATHERED // 3
    dataset = random_dataset(at_once + 100, 3)
    corruption = Corruption.for_training(TOKENIZER, 0.15, 0)
    whole = corruption(dataset)
    last = np.arange(at_once - 5, at_once + 5)
    assert corruption(dataset.subset(last)).fingerprint() == whole.subset(last).fingerprint()


def test_nothing_is_changed_in_place_and_no_record_is_no_trouble() -> None:
    dataset = random_dataset(5, 30)
    before = dataset.tokens.copy()
    corruption = Corruption.for_training(TOKENIZER, 0.5, 0)
    corruption(dataset)
    assert (dataset.tokens == before).all()
    assert len(corruption(SequenceDataset.from_lists([], []))) == 0


def test_shares_out_of_range_are_refused() -> None:
    for fraction, masked, replaced in ((1.5, 0.8, 0.1), (0.1, 0.8, 0.3), (0.1, -0.1, 0.1)):
        with pytest.raises(ValueError, match="shares between 0 and 1"):
            Corruption(20, MASK, fraction, masked, replaced)


def test_letters_are_counted_in_token_order_and_no_others() -> None:
    dataset = SequenceDataset.from_lists(["a"], [TOKENIZER.encode("ACXXYCA")])
    counts = dict(zip(TOKENIZER.alphabet.letters, count_letters(dataset, 20), strict=True))
    assert {letter: n for letter, n in counts.items() if n} == {"A": 2, "C": 2, "Y": 1}
