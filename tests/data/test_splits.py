"""Splits: sizes, shares of every class, whole clusters, and the same seed the same split."""

import re
from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtrain.data.audit import find_leaks
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.splits import (
    SPLITS,
    random_split,
    similarity_split,
    strata,
    stratified_split,
)
from seqtrain.errors import ConfigError, DataError

fractions = st.sampled_from(
    [(0.8, 0.1, 0.1), (0.7, 0.3, 0.0), (0.5, 0.25, 0.25), (0.2, 0.4, 0.4), (1.0, 0.0, 0.0)]
)
seeds = st.integers(0, 2**32)


def sizes(parts):
    return [int((parts == name).sum()) for name in SPLITS]


@settings(deadline=None)
@given(count=st.integers(0, 500), shares=fractions, seed=seeds)
def test_random_split_has_the_wanted_sizes_and_repeats_with_its_seed(count, shares, seed):
    parts = random_split(count, shares, seed)
    assert len(parts) == count
    assert set(parts.tolist()) <= set(SPLITS)
    assert np.abs(np.array(sizes(parts)) - np.array(shares) * count).max() < 1
    assert parts.tolist() == random_split(count, shares, seed).tolist()


def test_another_seed_gives_another_split():
    assert random_split(200, seed=0).tolist() != random_split(200, seed=1).tolist()
    labels = ["a", "b"] * 100
    assert stratified_split(labels, seed=0).tolist() != stratified_split(labels, seed=1).tolist()


@settings(deadline=None)
@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=12), shares=fractions, seed=seeds)
def test_every_class_keeps_its_shares_and_is_never_missing_from_train(counts, shares, seed):
    labels = [f"class {number}" for number, count in enumerate(counts) for _ in range(count)]
    labels = np.random.default_rng(seed).permutation(labels).tolist()
    parts = stratified_split(labels, shares, seed)
    for name in {*labels} if len({*labels}) < len(labels) else ():
        of_class = parts[np.array(labels) == name]
        wanted = np.array(shares) * len(of_class)
        assert "train" in of_class
        assert np.abs(np.array(sizes(of_class)) - wanted).max() <= 2
    absent = [name for name, share in zip(SPLITS, shares, strict=True) if share == 0]
    assert not set(absent) & set(parts.tolist())


def test_many_tiny_classes_still_add_up_to_the_fractions():
    labels = [f"family {i // 3}" for i in range(3000)]
    parts = stratified_split(labels, (0.8, 0.1, 0.1), seed=4)
    assert sizes(parts) == pytest.approx([2400, 300, 300], abs=3)


def test_pairs_keep_a_record_in_train_however_small_its_share():
    parts = stratified_split([f"{i // 2:03}" for i in range(100)], (0.2, 0.4, 0.4), seed=0)
    assert sizes(parts)[0] == 50
    assert all("train" in parts[i : i + 2] for i in range(0, 100, 2))


def test_classes_of_one_record_cost_the_others_nothing():
    labels = [f"{i:03} pair" for i in range(200) for _ in range(2)]
    labels += [f"{i:03} single" for i in range(200)]
    parts = stratified_split(labels, (0.8, 0.1, 0.1), seed=0)
    assert sizes(parts[:400]) == pytest.approx([320, 40, 40], abs=2)
    assert set(parts[400:]) == {"train"}


def test_a_class_of_one_record_goes_to_train():
    labels = ["common"] * 50 + ["rare"]
    for seed in range(20):
        assert stratified_split(labels, seed=seed)[-1] == "train"


def test_regression_targets_have_the_same_distribution_in_every_part():
    targets = np.random.default_rng(0).lognormal(size=1000)
    parts = stratified_split(targets, (0.6, 0.2, 0.2), seed=1)
    deciles = np.quantile(targets, np.arange(1, 10) / 10)
    for name, share in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
        bins = np.bincount(np.searchsorted(deciles, targets[parts == name]), minlength=10)
        assert bins.tolist() == pytest.approx([100 * share] * 10, abs=1)


def test_multilabel_keeps_the_rarest_label_in_proportion():
    rows = [{"common"}] * 300 + [{"common", "rare"}] * 20 + [set()] * 30
    parts = stratified_split(rows, (0.8, 0.1, 0.1), seed=2)
    assert sizes(parts[300:320]) == [16, 2, 2]
    assert sizes(parts[320:]) == [24, 3, 3]


def test_multilabel_rows_of_zeros_and_ones_are_read_as_sets_of_labels():
    matrix = np.zeros((100, 3), np.float32)
    matrix[:, 0] = 1
    matrix[90:, 2] = 1
    names = [{"0"}] * 90 + [{"0", "2"}] * 10
    assert stratified_split(matrix, seed=5).tolist() == stratified_split(names, seed=5).tolist()


@pytest.mark.parametrize(
    ("labels", "rule"),
    [
        (["a", "b", "a"], "by class"),
        (np.array([1, 0, 1]), "by class"),
        (np.linspace(0, 1, 200), "by 10 quantile bins of the target"),
        (np.linspace(0, 1, 35), "by 3 quantile bins of the target"),
        ([0.1, 0.2, 0.3], "at random, as there are too few records for quantile bins"),
        ([("a", "b"), ("a",), ("a",), ()], "by the rarest label present"),
        (["a", "b", "c"], "at random, as no label occurs twice"),
    ],
)
def test_strata_say_the_rule_that_made_them(labels, rule):
    assert strata(labels).rule.startswith(rule)


def test_equal_targets_fall_into_one_quantile_bin():
    targets = np.array([0.0] * 80 + [1.0] * 20)
    codes = strata(targets).codes
    assert len(set(codes[:80].tolist())) == len(set(codes[80:].tolist())) == 1


def test_labels_that_never_repeat_are_split_at_random_with_the_wanted_sizes():
    labels = [str(i) for i in range(100)]
    assert sizes(stratified_split(labels)) == [80, 10, 10]


@pytest.mark.parametrize(
    "wrong", [(0.8, 0.1), (0.8, 0.3, 0.1), (1.1, -0.1, 0.0), (0.0, 0.5, 0.5), (80.0, 10.0, 10.0)]
)
def test_fractions_that_are_no_shares_of_one_are_refused(wrong):
    with pytest.raises(ConfigError, match="add up to 1"):
        random_split(10, wrong)
    with pytest.raises(ConfigError, match="add up to 1"):
        similarity_split(tokens(["ACDEFGHIKL"]), wrong)


def tokens(sequences):
    """The letters' own codes as tokens."""
    codes = [np.frombuffer(sequence.encode(), np.uint8) for sequence in sequences]
    return SequenceDataset.from_lists(sequences, codes)


def families(rng, letters, number, members, length, identity):
    """Sequences in families of mutated copies, and the family of each."""
    sequences, family_of = [], []
    for family in range(number):
        parent = rng.choice(list(letters), length)
        for _ in range(members):
            kept = rng.random(length) < identity
            sequences.append("".join(np.where(kept, parent, rng.choice(list(letters), length))))
            family_of.append(family)
    return sequences, np.array(family_of)


@pytest.mark.parametrize("letters", ["ACDEFGHIKLMNPQRSTVWY", "ACGT"])
def test_similarity_split_never_parts_a_family(letters):
    rng = np.random.default_rng(0)
    sequences, family_of = families(rng, letters, 60, 5, 400, 0.93)
    shuffle = rng.permutation(len(sequences))
    parts = similarity_split(tokens([sequences[i] for i in shuffle]), (0.7, 0.15, 0.15), seed=3)
    for family in range(60):
        assert len(set(parts[family_of[shuffle] == family])) == 1
    assert sizes(parts) == pytest.approx([210, 45, 45], abs=5)


def test_similarity_split_repeats_with_its_seed_and_differs_with_another():
    sequences, _ = families(np.random.default_rng(1), "ACGT", 80, 2, 200, 0.95)
    first, again, other = (similarity_split(tokens(sequences), seed=seed) for seed in (0, 0, 1))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_a_large_family_goes_to_train_and_the_small_parts_are_still_met():
    rng = np.random.default_rng(2)
    large, _ = families(rng, "ACGT", 1, 120, 200, 0.95)
    small, _ = families(rng, "ACGT", 180, 1, 200, 1.0)
    parts = similarity_split(tokens(small + large), (0.8, 0.1, 0.1), seed=0)
    assert set(parts[180:]) == {"train"}
    assert sizes(parts) == [240, 30, 30]


def test_one_family_that_holds_everything_cannot_be_split():
    sequences, _ = families(np.random.default_rng(3), "ACGT", 1, 30, 300, 0.97)
    with pytest.raises(
        DataError, match=r"nothing for valid and test: 30 of 30 .* one family.*--method"
    ):
        similarity_split(tokens(sequences))
    assert set(similarity_split(tokens(sequences), (1.0, 0.0, 0.0))) == {"train"}


def read(folder):
    from Bio.SeqIO.FastaIO import SimpleFastaParser

    sequences = []
    for path in sorted(folder.glob("t*.fasta")):
        with path.open() as handle:
            sequences += [sequence.upper() for _, sequence in SimpleFastaParser(handle)]
    return sequences


def near_identical(sequences, start, word, share):
    """Pairs of records, by brute force, with at least ``share`` of the shorter one's words.

    A tenth of the words stands for all: those that begin with ``start``.
    """
    holders, words_of = defaultdict(list), []
    for number, sequence in enumerate(sequences):
        words = {sequence[m.start() : m.start() + word] for m in re.finditer(start, sequence)}
        words = {w for w in words if len(w) == word and len(set(w)) > 3}
        words_of.append(len(words))
        for w in words:
            holders[w].append(number)
    rare = [group for group in holders.values() if len(group) <= 30]
    shared = Counter(pair for group in rare for pair in combinations(group, 2))
    return [
        (a, b)
        for (a, b), count in shared.items()
        if count >= 5 and count >= share * min(words_of[a], words_of[b])
    ]


@pytest.mark.parametrize(
    ("name", "start", "word", "share", "at_least"),
    [("wheat_coding_potential", "AC", 24, 0.3, 100), ("tmbed_topology", "[KM]", 9, 0.6, 1)],
)
def test_near_identical_real_records_never_straddle_parts(
    real_data, name, start, word, share, at_least
):
    sequences = read(real_data / name)
    parts = similarity_split(tokens(sequences), (0.7, 0.15, 0.15), seed=0)
    pairs = near_identical(sequences, start, word, share)
    assert len(pairs) >= at_least
    assert [pair for pair in pairs if parts[pair[0]] != parts[pair[1]]] == []
    assert np.array(sizes(parts)) / len(sequences) == pytest.approx([0.7, 0.15, 0.15], abs=0.01)


@pytest.mark.parametrize("name", ["wheat_coding_potential", "tmbed_topology"])
def test_mutated_copies_of_real_records_stay_with_their_originals(real_data, name):
    rng = np.random.default_rng(0)
    originals = read(real_data / name)[::2]
    letters = sorted(set("".join(originals[:50])) - {"N", "X"})
    copied = rng.choice(len(originals), 300, replace=False)
    copies = []
    for i in copied:
        residues = np.array(list(originals[i]))
        kept = rng.random(len(residues)) < 0.95
        copies.append("".join(np.where(kept, residues, rng.choice(letters, len(residues)))))
    parts = similarity_split(tokens(originals + copies), (0.7, 0.15, 0.15), seed=1)
    assert (parts[copied] == parts[len(originals) :]).all()


@settings(deadline=None, max_examples=10)
@given(seed=seeds, length=st.sampled_from([12, 40, 120]))
def test_nothing_in_one_part_of_a_similarity_split_is_similar_to_another_part(seed, length):
    rng = np.random.default_rng(seed)
    alphabet = list("ACDEFGHIKLMNPQRSTVWY")
    records = []
    for _ in range(6):
        parent = rng.choice(alphabet, length)
        for _ in range(8):
            child = parent.copy()
            places = rng.choice(length, length // 6, replace=False)
            child[places] = rng.choice(alphabet, len(places))
            records.append("".join(child[: length - int(rng.integers(3))]))
    parts = similarity_split(tokens(records), (0.5, 0.25, 0.25), seed)
    for part in SPLITS:
        assert (parts == part).any()
    splits = {
        part: tokens([r for r, name in zip(records, parts, strict=True) if name == part])
        for part in SPLITS
    }
    assert find_leaks(splits) == []


def test_a_deep_mutational_scan_is_one_family_of_which_no_part_can_be_made():
    rng = np.random.default_rng(0)
    parent = rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 100)
    variants = np.tile(parent, (200, 1))
    variants[np.arange(200), rng.integers(0, 100, 200)] = "W"
    with pytest.raises(DataError, match="200 of 200 records are one family"):
        similarity_split(tokens(["".join(row) for row in variants]))


def test_each_part_gets_one_of_a_few_large_families():
    rng = np.random.default_rng(1)
    parents = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 80)) for _ in range(3)]
    parts = similarity_split(tokens([p for p in parents for _ in range(20)]))
    assert sorted(sizes(parts)) == [20, 20, 20]
