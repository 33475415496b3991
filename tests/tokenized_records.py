"""Small protein files, tokenized."""

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from seqtrain.data.alphabet import ALPHABETS
from seqtrain.data.tokenized import Tokenized, tokenize_fasta
from seqtrain.data.tokenizer import Tokenizer

PROTEIN = Tokenizer(ALPHABETS["protein"])
GAPPED = st.text("ACDEFX-*.", min_size=1, max_size=12).filter(lambda s: any(map(str.isalpha, s)))
"""Sequences some letters of which get no token."""


def write(path: Path, sequences: list[str], prefix: str = "r") -> str:
    """A FASTA file with descriptions."""
    lines = (f">{prefix}{i} of {s[:2]} ü\n{s}\n" for i, s in enumerate(sequences))
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def read(*paths: str, **options: Any) -> Tokenized:
    """Its records."""
    return tokenize_fasta(paths, lambda _: PROTEIN, **options)[0]
