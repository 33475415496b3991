"""Similar records of earlier splits: held against slow searches that compare every pair."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtrain.data import nearest
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.nearest import Effort, Nearest, nearest_earlier
from seqtrain.data.similarity import MIN_SHARED_WORDS

PROTEIN = "ACDEFGHIKLMNPQRSTVWY"
LITTLE = Effort(positions=40_000, meetings=2_000)


def as_dataset(sequences: list[str]) -> SequenceDataset:
    arrays = [np.frombuffer(s.encode(), np.uint8) for s in sequences]
    return SequenceDataset.from_lists([str(i) for i in range(len(sequences))], arrays)


def search(
    earlier: list[str],
    later: list[str],
    identity: float = 0.8,
    kmer: int | None = 5,
    **rest: Effort,
) -> Nearest:
    home = np.repeat([0, 1], [len(earlier), len(later)])
    return nearest_earlier(as_dataset(earlier + later), home, identity=identity, kmer=kmer, **rest)


def random_sequence(rng: np.random.Generator, length: int, letters: str = PROTEIN) -> str:
    return "".join(rng.choice(list(letters), length))


def substituted(rng: np.random.Generator, sequence: str, count: int) -> str:
    letters = list(sequence)
    for place in rng.choice(len(letters), count, replace=False):
        letters[place] = rng.choice([x for x in PROTEIN if x != letters[place]])
    return "".join(letters)


def words(sequence: str, k: int) -> set[str]:
    return {sequence[i : i + k] for i in range(len(sequence) - k + 1)}


def without_one(sequence: str) -> set[str]:
    return {sequence[:i] + sequence[i + 1 :] for i in range(len(sequence))}


def similarity(a: str, b: str, identity: float, k: int) -> float:
    """The rule as it is stated, for one pair; 0 where the two are not similar."""
    found = [0.0]
    if len(a) == len(b):
        found.append(sum(x == y for x, y in zip(a, b, strict=True)) / len(a))
    one, other = words(a, k), words(b, k)
    shared, fewer = len(one & other), min(len(one), len(other))
    if shared >= MIN_SHARED_WORDS:
        found.append((shared / fewer) ** (1 / k))
    longer = max(len(a), len(b))
    is_short = longer < 4 * k and min(len(a), len(b)) * (1 - identity) >= 1
    if is_short and ({a} | without_one(a)) & ({b} | without_one(b)):
        found.append(1 - 1 / longer)
    return max(value if value >= identity - 1e-6 else 0.0 for value in found)


@st.composite
def families(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """A few parents, and records made of them by substitutions, insertions and deletions."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    alphabet = draw(st.sampled_from(["AC", "ACDE", PROTEIN]))
    parents = [random_sequence(rng, int(rng.integers(4, 60)), alphabet) for _ in range(4)]

    def child() -> str:
        letters = list(parents[rng.integers(len(parents))])
        for _ in range(int(rng.integers(0, max(2, len(letters) // 4)))):
            place = int(rng.integers(len(letters)))
            kind = rng.integers(8)
            if kind == 0 and len(letters) > 1:
                del letters[place]
            elif kind == 1:
                letters.insert(place, rng.choice(list(alphabet)))
            else:
                letters[place] = rng.choice(list(alphabet))
        return "".join(letters)

    return [child() for _ in range(12)], [child() for _ in range(8)]


@settings(deadline=None, max_examples=60)
@given(records=families(), identity=st.sampled_from([0.7, 0.8, 0.9]), kmer=st.sampled_from([3, 5]))
def test_every_similar_record_is_found_as_comparing_all_pairs_finds_it(
    records: tuple[list[str], list[str]], identity: float, kmer: int
) -> None:
    earlier, later = records
    found = search(earlier, later, identity, kmer)
    assert found.limits == []
    table = [[similarity(b, a, identity, kmer) for a in earlier] for b in later]
    expected = np.array(table).max(axis=1)
    np.testing.assert_allclose(found.identity[len(earlier) :], expected, rtol=1e-5)
    for i, record in enumerate(found.record[len(earlier) :].tolist()):
        assert (record >= 0) == (expected[i] > 0)
        if record >= 0:
            assert table[i][record] == pytest.approx(expected[i], rel=1e-5)
    assert (found.record[: len(earlier)] == -1).all()


@pytest.mark.parametrize("positions", [10**9, 200_000])
def test_records_that_are_found_are_left_out_of_later_blocks(
    monkeypatch: pytest.MonkeyPatch, positions: int
) -> None:
    monkeypatch.setattr(nearest, "_REFERENCES", 16)
    monkeypatch.setattr(nearest, "_QUERIES", 8)
    rng = np.random.default_rng(0)
    parent = random_sequence(rng, 30)
    earlier = [substituted(rng, parent, 2) for _ in range(100)]
    later = [substituted(rng, parent, 2) for _ in range(50)]
    found = search(earlier, later, effort=Effort(positions=positions))
    assert found.limits == []
    assert (found.record[100:] >= 0).all()


@settings(deadline=None, max_examples=30)
@given(records=families())
def test_with_little_effort_nothing_is_made_up_and_what_may_be_missing_is_said(
    records: tuple[list[str], list[str]],
) -> None:
    earlier, later = records
    found = search(earlier, later, effort=Effort(positions=3000, meetings=30))
    whole = search(earlier, later)
    count = (found.record >= 0).sum()
    assert count <= (whole.record >= 0).sum()
    if not found.limits:
        assert count == (whole.record >= 0).sum()


@pytest.mark.parametrize("length", [5, 12, 40, 300])
@pytest.mark.parametrize("letters", ["A", "AC", PROTEIN])
def test_one_substitution_is_always_found(length: int, letters: str) -> None:
    rng = np.random.default_rng(length)
    earlier = [random_sequence(rng, length, letters) for _ in range(30)]
    later = [substituted(rng, earlier[7], 1)]
    found = search(earlier, later, kmer=None)
    assert found.record[-1] >= 0
    assert found.identity[-1] >= np.float32(1 - 1 / length)


def test_all_of_a_family_of_thousands_are_found() -> None:
    """As of deep mutational scans: variants of one protein, two and four changes away."""
    rng = np.random.default_rng(0)
    parent = random_sequence(rng, 237)
    earlier = [substituted(rng, parent, 2) for _ in range(3000)]
    later = [substituted(rng, parent, 4) for _ in range(400)]
    strangers = [random_sequence(rng, 237) for _ in range(50)]
    found = search(earlier, later + strangers, kmer=None)
    assert found.limits == []
    assert (found.record[3000:] >= 0).tolist() == [True] * 400 + [False] * 50


@pytest.mark.parametrize("effort", [None, LITTLE])
def test_a_family_of_unequal_lengths_is_found_by_its_words(effort: Effort | None) -> None:
    rng = np.random.default_rng(1)
    parent = random_sequence(rng, 300)
    cut = [parent[int(rng.integers(0, 30)) :] for _ in range(600)]
    members = [
        substituted(rng, one, 3) + random_sequence(rng, int(rng.integers(40))) for one in cut
    ]
    found = search(members[:500], members[500:], effort=effort or Effort())
    missing = (found.record[500:] < 0).sum()
    assert missing == 0 or (effort is not None and found.limits)
    if effort is None:
        assert missing == 0


def test_a_copy_is_known_by_the_earliest_record_of_an_earlier_split() -> None:
    home = np.array([0, 0, 1, 1, 2, 2])
    data = as_dataset(
        ["ACDEFGHIKL", "WWWWWWWWWW", "MMMMMMMMMM", "MMMMMMMMMM", "MMMMMMMMMM", "WWWWWWWWWW"]
    )
    found = nearest_earlier(data, home)
    assert found.record.tolist() == [-1, -1, -1, -1, 2, 1]
    assert found.identity.tolist() == [0, 0, 0, 0, 1, 1]


def test_what_a_small_budget_leaves_out_is_counted() -> None:
    rng = np.random.default_rng(2)
    earlier = [random_sequence(rng, 50) for _ in range(40)]
    later = [random_sequence(rng, 50) for _ in range(10)]
    assert search(earlier, later, effort=Effort(positions=100)).limits == [
        "10 records were not compared position by position"
    ]
    sampled = search(earlier, later, effort=Effort(words=500))
    assert sampled.is_sample
    assert sampled.limits[0].startswith("only ")
