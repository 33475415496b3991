"""Nouns and verbs agree with their numbers."""

import pytest

from seqtrain.data.report import _length_warnings
from seqtrain.data.unseen import unseen_words
from seqtrain.words import counted


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 records"), (1, "1 record"), (2, "2 records"), (1200, "1,200 records")],
)
def test_a_noun_agrees_with_its_number(number: int, said: str) -> None:
    assert counted(number, "record") == said


def test_the_verb_agrees_too() -> None:
    assert _length_warnings(1, 2) == [
        "1 over-long record is left out (data.overlong=skip)",
        "2 over-long records lost their end",
    ]
    assert unseen_words({"a": 1, "b": 2}).endswith("'a' (1 record), 'b' (2 records)")
