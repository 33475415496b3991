"""Similar records are found whatever their order; unrelated ones are left alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtrain.data import similarity
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.similarity import SimilarPairs, cluster, similar_pairs, word_length

PROTEIN = "ACDEFGHIKLMNPQRSTVWY"
DNA = "ACGT"


def as_dataset(sequences):
    arrays = [np.frombuffer(s.encode(), np.uint8) for s in sequences]
    return SequenceDataset.from_lists([str(i) for i in range(len(sequences))], arrays)


def random_sequence(rng, length, letters=PROTEIN):
    return "".join(rng.choice(list(letters), length))


def mutated(rng, sequence, identity, letters=PROTEIN):
    """Each residue kept with probability ``identity``, else replaced by another one."""
    changed = rng.random(len(sequence)) > identity
    return "".join(
        rng.choice([x for x in letters if x != old]) if change else old
        for old, change in zip(sequence, changed, strict=True)
    )


def found(sequences, **arguments):
    pairs = similar_pairs(as_dataset(sequences), **arguments)
    return set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


@pytest.mark.parametrize(("letters", "length"), [(PROTEIN, 300), (DNA, 1200)])
@pytest.mark.parametrize("order_seed", [0, 1])
def test_relatives_are_found_among_unrelated_records_and_nothing_else(letters, length, order_seed):
    rng = np.random.default_rng(7)
    parents = [random_sequence(rng, length, letters) for _ in range(40)]
    children = [mutated(rng, parent, 0.92, letters) for parent in parents[:15]]
    fragments = [parent[50:130] for parent in parents[15:25]]
    records = parents + children + fragments
    shuffle = np.random.default_rng(order_seed).permutation(len(records))
    expected = {frozenset((i, 40 + i)) for i in range(25)}
    pairs = found([records[i] for i in shuffle], identity=0.8)
    assert {frozenset((int(shuffle[a]), int(shuffle[b]))) for a, b in pairs} == expected


def test_identity_is_estimated_from_the_share_of_common_words():
    rng = np.random.default_rng(0)
    parent = random_sequence(rng, 3000)
    for identity in (0.95, 0.85, 0.75):
        pairs = similar_pairs(as_dataset([parent, mutated(rng, parent, identity)]), identity=0.6)
        assert pairs.identity[0] == pytest.approx(identity, abs=0.03)


def test_a_stricter_identity_finds_fewer_pairs():
    rng = np.random.default_rng(0)
    parent = random_sequence(rng, 500)
    records = [parent, mutated(rng, parent, 0.8)]
    assert found(records, identity=0.7) == {(0, 1)}
    assert found(records, identity=0.95) == set()


letters = st.text(PROTEIN, min_size=7, max_size=18)


@settings(deadline=None)
@given(peptide=letters, others=st.lists(letters, max_size=20), data=st.data())
def test_peptides_one_edit_apart_are_always_a_pair(peptide, others, data):
    place = data.draw(st.integers(0, len(peptide) - 1))
    letter = data.draw(st.sampled_from(PROTEIN))
    edited = data.draw(
        st.sampled_from(
            [
                peptide[:place] + letter + peptide[place + 1 :],
                peptide[:place] + letter + peptide[place:],
                peptide[:place] + peptide[place + 1 :],
            ]
        )
    )
    records = [peptide, *others, edited]
    pairs = similar_pairs(as_dataset(records), identity=0.8)
    labels = cluster(len(records), pairs)
    assert labels[0] == labels[-1]


def test_one_edit_is_too_much_where_it_is_more_than_identity_allows():
    assert found(["ACDEFGHIKL", "ACDEWGHIKL"], identity=0.89) == {(0, 1)}
    assert found(["ACDEFGHIKL", "ACDEWGHIKL"], identity=0.91) == set()


@pytest.mark.parametrize("record", ["A", "ACA", "AAAAAAAAAAAAAAAAAAAAAAAA", "ACDEFGHIKLMN" * 30])
def test_equal_records_are_a_pair_of_identity_one_however_short_or_plain(record):
    pairs = similar_pairs(as_dataset([record, "WWY", record]), identity=0.95)
    assert (pairs.first.tolist(), pairs.second.tolist()) == ([0], [2])
    assert pairs.identity.tolist() == [1.0]


def test_two_edits_in_a_short_peptide_are_no_pair():
    assert found(["ACDEFGHIKL", "ACWEFGYIKL"], identity=0.8) == set()


def test_every_pair_is_listed_where_that_is_feasible():
    rng = np.random.default_rng(3)
    parent = random_sequence(rng, 200)
    family = [mutated(rng, parent, 0.98) for _ in range(60)]
    assert len(found(family, identity=0.8)) == 60 * 59 / 2


def test_a_very_large_family_hangs_together_though_not_every_pair_is_listed(monkeypatch):
    monkeypatch.setattr(similarity, "MAX_MEETINGS", 400_000)
    rng = np.random.default_rng(3)
    parent = random_sequence(rng, 400)
    family = [mutated(rng, parent, 0.95) for _ in range(300)]
    strangers = [random_sequence(rng, 400) for _ in range(50)]
    pairs = similar_pairs(as_dataset(family + strangers), identity=0.8)
    labels = cluster(350, pairs)
    assert len(set(labels[:300])) == 1
    assert len(set(labels)) == 51
    assert len(pairs.first) < 300 * 299 / 8


def test_near_copies_stand_together_where_every_word_is_common(monkeypatch):
    monkeypatch.setattr(similarity, "MAX_MEETINGS", 1)
    rng = np.random.default_rng(4)
    originals = [random_sequence(rng, 300) for _ in range(300)]
    copies = [original[:150] + "W" + original[151:] for original in originals[:40]]
    pairs = found(originals + copies, identity=0.8, kmer=3)
    assert len(pairs & {(i, 300 + i) for i in range(40)}) >= 35


def test_runs_of_one_letter_make_no_records_similar():
    rng = np.random.default_rng(5)
    records = [random_sequence(rng, 60, DNA) + "A" * 200 for _ in range(10)]
    records += [random_sequence(rng, 60, DNA) + "N" * 200 for _ in range(10)]
    assert found(records, identity=0.8) == set()


def test_words_never_reach_over_the_border_of_two_records():
    rng = np.random.default_rng(1)
    middle, left, right = (random_sequence(rng, n) for n in (12, 30, 30))
    assert found([left + middle, right]) == set()
    assert found([left + middle[:6], middle[6:] + right, middle]) == set()
    assert found([left + middle, right, middle]) == {(0, 2)}


def test_one_or_two_common_words_are_chance_even_in_short_records():
    for short, pairs in [("ACDEFG", set()), ("ACDEFGH", set()), ("ACDEFGHI", {(0, 1)})]:
        assert found([short, f"WWHH{short[:-1]}WYVW"], identity=0.8, kmer=5) == pairs


def test_a_pair_found_by_words_and_by_an_edit_is_listed_once_with_the_higher_identity():
    pairs = similar_pairs(as_dataset(["ACDEFGHIKLMN", "ACDEFGHIKLMW"]), identity=0.8, kmer=5)
    assert pairs.identity == pytest.approx([(7 / 8) ** (1 / 5)])


def test_sampled_words_still_find_relatives_in_long_records(monkeypatch):
    rng = np.random.default_rng(9)
    parents = [random_sequence(rng, 2000) for _ in range(10)]
    records = parents + [mutated(rng, parent, 0.95) for parent in parents]
    monkeypatch.setattr(similarity, "MAX_WORDS", 4000)
    assert found(records, identity=0.8) == {(i, 10 + i) for i in range(10)}
    monkeypatch.setattr(similarity, "MAX_WORDS", 10)
    assert found(records, identity=0.8) == set()


def test_word_length_follows_the_alphabet_and_grows_with_the_data():
    rng = np.random.default_rng(0)
    assert word_length(as_dataset([random_sequence(rng, 4000)])) == 5
    assert word_length(as_dataset([random_sequence(rng, 4000, DNA)])) == 11
    assert word_length(as_dataset([random_sequence(rng, 4000, DNA) + "NRYKM"])) == 11
    many = SequenceDataset(
        ["a"], rng.integers(0, 4, 20_000_000).astype(np.uint8), np.array([0, 20_000_000])
    )
    assert word_length(many) == 12


@settings(deadline=None)
@given(
    size=st.integers(1, 40),
    data=st.data(),
)
def test_clusters_are_the_connected_parts(size, data):
    node = st.integers(0, size - 1)
    edges = data.draw(st.lists(st.tuples(node, node), max_size=60))
    first, second = np.array(edges, np.int64).reshape(-1, 2).T
    labels = cluster(size, SimilarPairs(first, second, np.ones(len(edges), np.float32)))
    neighbours = {i: {i} for i in range(size)}
    for a, b in edges:
        merged = neighbours[a] | neighbours[b]
        for i in merged:
            neighbours[i] = merged
    for i in range(size):
        assert {j for j in range(size) if labels[j] == labels[i]} == neighbours[i]
    assert list(dict.fromkeys(labels.tolist())) == list(range(len(set(labels.tolist()))))


@pytest.mark.parametrize("records", [[], ["A"], ["A", "C"], ["ACDEF"]])
def test_records_too_few_or_too_short_give_no_pairs(records):
    assert found(records) == set()


@pytest.mark.parametrize("wrong", [{"identity": 1.0}, {"identity": 0.0}, {"kmer": 0}])
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="need"):
        similar_pairs(as_dataset(["ACDEF"]), **wrong)
