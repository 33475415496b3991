"""Residue letters to token ids and back, under a stated policy for every unusual letter."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from string import ascii_uppercase
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer, UInt8

from seqtrain.data import schema
from seqtrain.data.alphabet import ALPHABETS, GAPS, STOP, Alphabet
from seqtrain.errors import ConfigError, DataError

PAD: int = 0
"""Token that fills a batch up to its width; never stands for a residue."""

_REFUSED = 255
_POLICIES = {
    "ambiguous": ("unknown", "keep", "error"),
    "gap": ("drop", "unknown", "error"),
    "stop": ("drop", "unknown", "error"),
    "other": ("error", "unknown"),
}


@dataclass(frozen=True)
class Tokenizer:
    """What each letter of a sequence becomes. Lower case (soft-masked) reads as upper case.

    Raises:
        ConfigError: A policy is not one of those named beside it.
    """

    alphabet: Alphabet
    ambiguous: str = "unknown"
    """Ambiguity codes and rare residues: ``unknown`` reads them as X or N, ``keep`` gives each a
    token of its own, ``error`` refuses them, X and N too."""
    gap: str = "drop"
    """``-`` and ``.``: ``drop``, ``unknown`` (a residue that is not known) or ``error``."""
    stop: str = "drop"
    """``*``: ``drop``, ``unknown`` or ``error``."""
    other: str = "error"
    """Letters outside the alphabet: ``error`` or ``unknown``."""

    def __post_init__(self) -> None:
        for name, choices in _POLICIES.items():
            value = getattr(self, name)
            if value not in choices:
                expected = ", ".join(choices)
                raise ConfigError(f"tokenizer.{name}: expected one of {expected}, found {value!r}.")

    @cached_property
    def vocab(self) -> tuple[str, ...]:
        """The letter of every token, in token order, after ``<pad>``."""
        codes = self.alphabet.ambiguous.replace(self.alphabet.unknown, "")
        kept = codes if self.ambiguous == "keep" else ""
        return ("<pad>", *self.alphabet.letters, self.alphabet.unknown, *kept)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, padding included."""
        return len(self.vocab)

    @cached_property
    def _policies(self) -> dict[str, str]:
        """Which policy rules each letter or symbol that is not canonical."""
        alphabet = self.alphabet
        known = {*alphabet.letters, *alphabet.ambiguous, *alphabet.synonyms}
        return {
            **dict.fromkeys(GAPS, "gap"),
            **dict.fromkeys(STOP, "stop"),
            **dict.fromkeys(alphabet.ambiguous, "ambiguous"),
            **dict.fromkeys(alphabet.synonyms, "synonym"),
            **dict.fromkeys(sorted(set(ascii_uppercase) - known), "other"),
        }

    @cached_property
    def _dropped(self) -> bytes:
        symbols = (GAPS if self.gap == "drop" else "") + (STOP if self.stop == "drop" else "")
        return symbols.encode()

    @cached_property
    def _table(self) -> bytes:
        """The token of every byte; ``_REFUSED`` for those that no policy lets through."""
        tokens = {letter: token for token, letter in enumerate(self.vocab) if token != PAD}
        unknown = tokens[self.alphabet.unknown]
        for symbol, policy in self._policies.items():
            if policy == "synonym":
                tokens[symbol] = tokens[self.alphabet.synonyms[symbol]]
            elif getattr(self, policy) == "error":
                tokens[symbol] = _REFUSED
            else:
                tokens.setdefault(symbol, unknown)
        table = bytearray([_REFUSED]) * 256
        for symbol, token in tokens.items():
            table[ord(symbol)] = table[ord(symbol.lower())] = token
        return bytes(table)

    def encode(self, sequence: str) -> UInt8[np.ndarray, " L"]:
        """Token ids of the letters that are not dropped, each in 1 .. ``vocab_size - 1``.

        Raises:
            DataError: A letter is refused (named, with its place), or none is left.
        """
        # bytes.translate runs through the letters in C: about 10^9 a second.
        tokens = _letters(sequence).translate(self._table, self._dropped)
        if not tokens or _REFUSED in tokens:
            raise DataError(self.problem(sequence))
        return np.frombuffer(tokens, dtype=np.uint8)

    def keep(self, sequence: str) -> Bool[np.ndarray, " N"]:
        """Which letters of ``sequence`` get a token: as many are True as ``encode`` returns."""
        letters = np.frombuffer(_letters(sequence), dtype=np.uint8)
        return np.isin(letters, np.frombuffer(self._dropped, dtype=np.uint8), invert=True)

    def problem(self, sequence: str) -> str | None:
        """Why ``encode`` refuses ``sequence``, or None when it does not."""
        tokens = _letters(sequence).translate(self._table)
        if _REFUSED not in tokens:
            left = _letters(sequence).translate(None, self._dropped)
            return None if left else "no residue is left after dropping gaps and stops"
        place = tokens.index(_REFUSED)
        letter = sequence[place]
        policy = self._policies.get(letter.upper())
        if policy == "ambiguous":
            found = f"residue {place + 1}: {letter!r} is an ambiguity code"
        else:
            found = f"residue {place + 1}: {letter!r} is not in the {self.alphabet.name} alphabet"
        return f"{found}; remove or replace it"

    def refused(self, letters: Mapping[str, int]) -> list[str]:
        """Policies that, set to ``unknown``, would let through letters that are refused now."""
        policies = {self._policies.get(letter.upper()) for letter in letters}
        return [name for name in _POLICIES if name in policies and getattr(self, name) == "error"]

    def decode(self, tokens: Integer[np.ndarray, " L"]) -> str:
        """The letters of tokens, padding left out."""
        return "".join(self.vocab[token] for token in tokens.tolist() if token != PAD)

    def count_policies(self, letters: Mapping[str, int]) -> dict[str, int]:
        """Counts of letters under ``gap``, ``stop``, ``ambiguous``, ``synonym`` and ``other``.

        Args:
            letters: How often each letter occurs, in either case.
        """
        counts = dict.fromkeys(("gap", "stop", "ambiguous", "synonym", "other"), 0)
        for letter, count in letters.items():
            if policy := self._policies.get(letter.upper()):
                counts[policy] += count
        return counts

    def to_dict(self) -> dict[str, str]:
        """Name of the alphabet and the policies, for JSON."""
        policies = {name: str(getattr(self, name)) for name in _POLICIES}
        return {"alphabet": self.alphabet.name, **policies}

    @classmethod
    def from_dict(cls, settings: Any) -> "Tokenizer":
        """The tokenizer that ``to_dict`` described.

        Raises:
            ValueError: A policy is missing, not known, or no text.
            ConfigError: The alphabet or a policy is not known.
        """
        names = ("alphabet", *_POLICIES)
        schema.record(dict.fromkeys(names, schema.text))(settings, "tokenizer")
        if strange := sorted(settings.keys() - set(names)):
            raise ValueError(f"tokenizer: this version does not know {strange[0]!r}")
        name = settings["alphabet"]
        if name not in ALPHABETS:
            expected = ", ".join(ALPHABETS)
            raise ConfigError(f"tokenizer.alphabet: expected one of {expected}, found {name!r}.")
        return cls(ALPHABETS[name], **{key: settings[key] for key in _POLICIES})


def _letters(sequence: str) -> bytes:
    """One byte a letter; whatever is not Latin becomes ``?``, which is in no alphabet."""
    return sequence.encode("latin-1", "replace")
