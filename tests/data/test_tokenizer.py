import json
import string
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqtrain.data.alphabet import ALPHABETS, DNA, PROTEIN, RNA, Alphabet
from seqtrain.data.tokenizer import PAD, Tokenizer
from seqtrain.errors import ConfigError, DataError

alphabets = st.sampled_from(list(ALPHABETS.values()))
policies = st.fixed_dictionaries(
    {
        "ambiguous": st.sampled_from(["unknown", "keep", "error"]),
        "gap": st.sampled_from(["drop", "unknown", "error"]),
        "stop": st.sampled_from(["drop", "unknown", "error"]),
        "other": st.sampled_from(["error", "unknown"]),
    }
)
tokenizers = st.builds(lambda a, p: Tokenizer(a, **p), alphabets, policies)
texts = st.text(alphabet=string.ascii_letters + "-.*1 é字", max_size=40)


def read_letter(tokenizer: Tokenizer, symbol: str) -> str | None:
    """Letter by letter, straight from the documented policies: '' is dropped, None refused."""
    alphabet, letter = tokenizer.alphabet, symbol.upper()
    if letter in list(alphabet.letters):
        return letter
    if letter in alphabet.synonyms:
        return alphabet.synonyms[letter]
    if letter in list(alphabet.ambiguous):
        policy = tokenizer.ambiguous
    elif letter in ("-", "."):
        policy = tokenizer.gap
    elif letter == "*":
        policy = tokenizer.stop
    elif letter in list(string.ascii_uppercase):
        policy = tokenizer.other
    else:
        policy = "error"
    return {"unknown": alphabet.unknown, "keep": letter, "drop": "", "error": None}[policy]


@given(tokenizers, texts)
def test_encode_agrees_with_reading_letter_by_letter(tokenizer, text):
    expected = [read_letter(tokenizer, symbol) for symbol in text]
    if None in expected or not "".join(letter or "" for letter in expected):
        with pytest.raises(DataError):
            tokenizer.encode(text)
        assert tokenizer.problem(text) is not None
        return
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.uint8
    assert [tokenizer.vocab[token] for token in tokens] == list("".join(expected))
    assert tokenizer.problem(text) is None
    assert PAD not in tokens


@given(tokenizers, texts)
def test_keep_marks_the_letters_that_encode_returns(tokenizer, text):
    if tokenizer.problem(text) is None:
        keep = tokenizer.keep(text)
        assert keep.tolist() == [read_letter(tokenizer, symbol) != "" for symbol in text]
        assert keep.sum() == len(tokenizer.encode(text))


@given(st.data(), alphabets)
def test_canonical_letters_come_back_unchanged(data, alphabet):
    sequence = data.draw(st.text(alphabet=alphabet.letters, min_size=1))
    tokenizer = Tokenizer(alphabet)
    assert tokenizer.decode(tokenizer.encode(sequence)) == sequence
    assert tokenizer.decode(tokenizer.encode(sequence.lower())) == sequence


@given(tokenizers)
def test_vocabulary_is_padding_letters_unknown_then_kept_codes(tokenizer):
    alphabet = tokenizer.alphabet
    kept = sorted(set(alphabet.ambiguous) - {alphabet.unknown})
    expected = ["<pad>", *alphabet.letters, alphabet.unknown]
    assert list(tokenizer.vocab) == expected + (kept if tokenizer.ambiguous == "keep" else [])
    assert tokenizer.vocab_size == len(tokenizer.vocab)


@given(tokenizers)
def test_settings_survive_json(tokenizer):
    assert Tokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict()))) == tokenizer


@pytest.mark.parametrize(
    ("alphabet", "settings", "text", "decoded"),
    [
        (DNA, {}, "ACGU", "ACGT"),
        (RNA, {}, "acgt", "ACGU"),
        (DNA, {}, "AC-G.T*", "ACGT"),
        (DNA, {"gap": "unknown"}, "A-T", "ANT"),
        (PROTEIN, {}, "MBZJXUOK", "MXXXXXXK"),
        (PROTEIN, {"ambiguous": "keep"}, "MBZJXUOK", "MBZJXUOK"),
        (PROTEIN, {"stop": "unknown"}, "MK*", "MKX"),
        (DNA, {"other": "unknown"}, "ACXE", "ACNN"),
    ],
)
def test_policies_read_letters_as_documented(alphabet, settings, text, decoded):
    tokenizer = Tokenizer(alphabet, **settings)
    assert tokenizer.decode(tokenizer.encode(text)) == decoded


def test_decode_leaves_padding_out():
    assert Tokenizer(DNA).decode(np.array([1, 2, 0, 0])) == "AC"


@pytest.mark.parametrize(
    ("alphabet", "settings", "text", "message"),
    [
        (DNA, {}, "AC-GE", "residue 5: 'E' is not in the dna alphabet; remove or "
         "replace it"),
        (PROTEIN, {"ambiguous": "error"}, "MKX", "residue 3: 'X' is an ambiguity code; remove "
         "or replace it"),
        (DNA, {"gap": "error"}, "A.C", "residue 2: '.' is not in the dna alphabet; remove or "
         "replace it"),
        (PROTEIN, {"stop": "error"}, "M*", "residue 2: '*' is not in the protein alphabet; "
         "remove or replace it"),
        (PROTEIN, {"other": "unknown"}, "M字1", "residue 2: '字' is not in the protein alphabet; "
         "remove or replace it"),
        (DNA, {}, "-*.", "no residue is left after dropping gaps and stops"),
        (DNA, {}, "", "no residue is left after dropping gaps and stops"),
    ],
)  # fmt: skip
def test_refused_sequences_are_told_with_place_and_fix(alphabet, settings, text, message):
    tokenizer = Tokenizer(alphabet, **settings)
    assert tokenizer.problem(text) == message
    with pytest.raises(DataError) as caught:
        tokenizer.encode(text)
    assert str(caught.value) == message


def test_policies_are_counted():
    counts = Tokenizer(DNA, other="unknown").count_policies(Counter("ACGTuu--.*NnRXE"))
    assert counts == {"gap": 3, "stop": 1, "ambiguous": 3, "synonym": 2, "other": 2}


@pytest.mark.parametrize("policy", ["ambiguous", "gap", "stop", "other"])
def test_unknown_policy_is_refused(policy):
    with pytest.raises(ConfigError, match=f"tokenizer.{policy}: expected one of .* 'drp'"):
        Tokenizer(DNA, **{policy: "drp"})


def test_unknown_alphabet_is_refused():
    settings = Tokenizer(DNA).to_dict() | {"alphabet": "codon"}
    with pytest.raises(ConfigError, match="expected one of protein, dna, rna, found 'codon'"):
        Tokenizer.from_dict(settings)


def test_tokenizers_can_be_keys():
    again = Alphabet("dna", "ACGT", "BDHKMNRSVWY", "N", {"U": "T"})
    assert len({Tokenizer(DNA), Tokenizer(again), Tokenizer(RNA)}) == 2


def test_encoding_is_a_table_lookup():
    """The interpreter does the same few steps however long the sequence: no loop over letters."""
    tokenizer = Tokenizer(DNA)

    def steps_for(sequence: str) -> int:
        steps = 0

        def count(frame, event, argument):
            nonlocal steps
            frame.f_trace_opcodes = True
            steps += event == "opcode"
            return count

        before = sys.gettrace()
        sys.settrace(count)
        try:
            tokenizer.encode(sequence)
        finally:
            sys.settrace(before)
        return steps

    steps_for("ACGT")  # fills what is kept
    assert 0 < steps_for("ACGT") == steps_for("ACGT" * 10_000)


def test_policies_that_would_let_refused_letters_through_are_named():
    strict = Tokenizer(PROTEIN, ambiguous="error", gap="error")
    assert strict.refused({"A": 3, "X": 1, "-": 1, "*": 1}) == ["ambiguous", "gap"]
    assert Tokenizer(DNA).refused({"e": 1, "N": 1, "1": 1}) == ["other"]
    assert Tokenizer(DNA, other="unknown").refused({"E": 1}) == []
