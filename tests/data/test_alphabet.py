import string
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtrain.data.alphabet import ALPHABETS, DNA, PROTEIN, RNA, detect_alphabet
from seqtrain.errors import DataError


def detect(text: str) -> str:
    return detect_alphabet(Counter(text)).name


@pytest.mark.parametrize("alphabet", ALPHABETS.values(), ids=list(ALPHABETS))
def test_letters_codes_and_synonyms_do_not_overlap(alphabet):
    groups = [*alphabet.letters, *alphabet.ambiguous, *alphabet.synonyms]
    assert len(groups) == len(set(groups))
    assert set(groups) <= set(string.ascii_uppercase)
    assert alphabet.unknown in alphabet.ambiguous
    assert set(alphabet.synonyms.values()) <= set(alphabet.letters)


def test_every_letter_means_something_in_a_protein():
    assert set(PROTEIN.letters + PROTEIN.ambiguous) == set(string.ascii_uppercase)


def test_nucleotide_codes_are_the_fifteen_of_iupac():
    assert set(DNA.letters + DNA.ambiguous) == set("ACGTRYSWKMBDHVN")
    assert set(RNA.letters + RNA.ambiguous) == set("ACGURYSWKMBDHVN")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ACGTTGCA", "dna"),
        ("acgtnnnnACGT", "dna"),
        ("ACGUUGCA", "rna"),
        ("ACGUACGUT", "rna"),
        ("ACGA", "dna"),
        ("ACGTRYSWKMNN", "dna"),
        ("NNNNNNNN", "dna"),
        ("ACG-TTG.CA*", "dna"),
        ("MKTAYIAKQR", "protein"),
        ("KWKRRWWK", "protein"),
        ("GLFDIVKKVVGALGSL", "protein"),
        ("mktayiakqr", "protein"),
        ("ACGT" * 50 + "E", "dna"),
        ("KKGGCCAARRSSDDVV", "protein"),
    ],
)
def test_alphabet_is_told_from_the_letters(text, name):
    assert detect(text) == name


@settings(deadline=None)
@given(st.text(alphabet="ACGT", min_size=1), st.integers(0, 9))
def test_up_to_a_tenth_of_ambiguity_codes_never_turns_dna_into_protein(sequence, codes):
    text = sequence * 10 + "RYSWKMBDHV"[:codes]
    assert detect(text) == "dna"


@settings(deadline=None)
@given(st.text(alphabet=PROTEIN.letters, min_size=200, max_size=400))
def test_random_proteins_are_never_taken_for_nucleotides(sequence):
    if sum(sequence.count(letter) for letter in "ACGTN") < 0.5 * len(sequence):
        assert detect(sequence) == "protein"


def test_gaps_alone_are_refused():
    with pytest.raises(DataError, match="no letters"):
        detect_alphabet({"-": 10, "*": 2})
