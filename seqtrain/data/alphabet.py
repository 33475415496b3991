"""The letters of protein, DNA and RNA, and how to tell which of them a file is written in."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from seqtrain.errors import DataError

GAPS = "-."
STOP = "*"


@dataclass(frozen=True)
class Alphabet:
    """Residue letters in IUPAC one-letter codes, upper case."""

    name: str
    """``protein``, ``dna`` or ``rna``."""
    letters: str
    """Canonical residues, each with a token of its own."""
    ambiguous: str
    """Codes for one of several residues and, for proteins, rare residues; holds ``unknown``."""
    unknown: str
    """The code that means any residue."""
    synonyms: Mapping[str, str] = field(hash=False)
    """Letters read as a canonical one: T in RNA and U in DNA."""


PROTEIN = Alphabet("protein", "ACDEFGHIKLMNPQRSTVWY", "BJOUXZ", "X", {})
DNA = Alphabet("dna", "ACGT", "BDHKMNRSVWY", "N", {"U": "T"})
RNA = Alphabet("rna", "ACGU", "BDHKMNRSVWY", "N", {"T": "U"})
ALPHABETS: dict[str, Alphabet] = {a.name: a for a in (PROTEIN, DNA, RNA)}

_PLAIN_NUCLEOTIDES = "ACGTUN"
_PROTEIN_ONLY = "EFIJLOPQXZ"


def detect_alphabet(letter_counts: Mapping[str, int]) -> Alphabet:
    """The alphabet that letters were most likely written in.

    Nucleotides are assumed when 90 % of the letters are A, C, G, T, U or N (in proteins these
    make up about 30 %), or when half of them are and no letter at all is one that only
    proteins have (E F I J L O P Q X Z), which lets degenerate primers through. Then U against T
    decides between RNA and DNA; with neither of them it is DNA. Everything else is protein.

    Count every letter of every record: a few peptides made only of A, C, G and T look like DNA
    to this rule, a whole set of them hardly ever. Give the alphabet where that may happen.

    Args:
        letter_counts: How often each letter occurs; lower case counts as upper case, gaps and
            stops are left aside.

    Raises:
        DataError: There is not one letter.
    """
    counts: dict[str, int] = {}
    for letter, count in letter_counts.items():
        if letter.isalpha():
            counts[letter.upper()] = counts.get(letter.upper(), 0) + count
    total = sum(counts.values())
    if total == 0:
        raise DataError("The sequences hold no letters, so their alphabet cannot be told.")
    plain = sum(counts.get(letter, 0) for letter in _PLAIN_NUCLEOTIDES) / total
    protein_only = any(counts.get(letter, 0) for letter in _PROTEIN_ONLY)
    if plain >= 0.9 or (plain >= 0.5 and not protein_only):
        return RNA if counts.get("U", 0) > counts.get("T", 0) else DNA
    return PROTEIN
