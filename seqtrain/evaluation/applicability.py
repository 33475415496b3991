"""Compares records with those of the training: alphabet, length, composition."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.tokenizer import Tokenizer

WARNINGS = ("alphabet", "length", "composition")
QUANTILE = 0.999
"""Share of the training records whose composition counts as usual."""

_NUCLEOTIDES = "ACGTU"
_NUCLEOTIDE_SHARE = 0.9
_FEWEST_LETTERS = 30
"""Shorter proteins may be made of A, C, G and T by chance."""
_MANY_TOKENS = 2**22
_BLOCK = 1 << 16


@dataclass(frozen=True)
class TrainingRange:
    """What the training records were like."""

    shortest: int
    """Residues."""
    longest: int
    composition: tuple[float, ...] = ()
    """Share of each token, padding at 0 left out; empty where it is not known."""
    overdispersion: float = 0.0
    """By how much compositions differ more than chance, per residue."""
    farthest: float = 0.0
    """Composition distance that 99.9 % of the training records keep to."""

    @classmethod
    def of(cls, train: SequenceDataset, vocab_size: int) -> "TrainingRange":
        """The range of the training part.

        A record's composition distance is the Freeman-Tukey statistic of its counts,
        ``8 L (1 - sum(sqrt(p * q)))`` for shares p where training has q, divided by
        ``1 + (L - 1) r``. Chance alone makes about the number of letters less one of it, whatever
        the length L; r, the overdispersion, takes out the growth with L that real records show.
        """
        totals = np.ones(vocab_size - 1)
        counts = train.token_counts()[1:]
        totals[: len(counts)] += counts
        shares = totals / totals.sum()
        raw = np.concatenate([_freeman_tukey(c, shares) for c in _blocks(train, vocab_size)])
        freedom = max(1, int((totals > 1).sum()) - 1)
        beyond = (train.lengths - 1).sum() * freedom
        spread = float(max(0.0, (raw.sum() - freedom * len(train)) / max(1, beyond)))
        far = np.quantile(raw / (1 + (train.lengths - 1) * spread), QUANTILE)
        bounds = int(train.lengths.min()), int(train.lengths.max())
        return cls(*bounds, tuple(shares.tolist()), spread, float(far))

    @classmethod
    def from_report(cls, report: Mapping[str, Any]) -> "TrainingRange | None":
        """The range that ``data.json`` holds; older ones have the lengths alone, or nothing."""
        if saved := report.get("training_range"):
            return cls(**{**saved, "composition": tuple(saved["composition"])})
        lengths = report.get("parts", {}).get("train", {}).get("lengths")
        return cls(int(lengths["min"]), int(lengths["max"])) if lengths else None

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)

    def warnings(self, tokens: Sequence[np.ndarray], tokenizer: Tokenizer) -> list[tuple[str, ...]]:
        """What of ``WARNINGS`` there is to say of each record.

        Args:
            tokens: Of each record.
            tokenizer: That made them.
        """
        if not tokens:
            return []
        dataset = SequenceDataset.from_lists([""] * len(tokens), tokens)
        counts = np.concatenate(list(_blocks(dataset, tokenizer.vocab_size)))
        lengths = dataset.lengths
        found = {
            "alphabet": _is_foreign(counts, tokenizer),
            "length": (lengths < self.shortest) | (lengths > self.longest),
        }
        if self.composition:
            distance = _freeman_tukey(counts, np.array(self.composition))
            scaled = distance / (1 + (lengths - 1) * self.overdispersion)
            found["composition"] = scaled > self.farthest
        rows = np.stack(list(found.values()), axis=1)
        return [tuple(n for n, said in zip(found, row, strict=True) if said) for row in rows]

    def sentences(self, counts: Mapping[str, int], total: int, alphabet: str) -> list[str]:
        """A summary of warnings.

        Args:
            counts: How many of the records got each warning.
            total: How many records were read.
            alphabet: The model's.
        """
        trained = f"{self.shortest:,} to {self.longest:,}"
        what = {
            "alphabet": f"do not look like {alphabet}, which the model reads",
            "length": f"are shorter or longer than any training record ({trained})",
            "composition": "have a composition unlike training (of whose records 0.1% have)",
        }
        return [
            f"{counts[name]:,} of {total:,} records ({counts[name] / total:.1%}) {said}"
            for name, said in what.items()
            if counts.get(name)
        ]


def alphabet_warning(dataset: SequenceDataset, tokenizer: Tokenizer, what: str) -> str | None:
    """A sentence if records do not look like the alphabet that they are read as; None if all do.

    Args:
        dataset: The records, nothing hidden.
        tokenizer: That made them.
        what: What they are called, such as ``test records``.
    """
    name, total = tokenizer.alphabet.name, len(dataset)
    pooled = np.zeros((1, tokenizer.vocab_size - 1), np.int64)
    foreign = 0
    for counts in _blocks(dataset, tokenizer.vocab_size):
        foreign += int(_is_foreign(counts, tokenizer).sum())
        pooled += counts.sum(axis=0)
    if _is_foreign(pooled, tokenizer).any():
        foreign = total  # each may be too short to tell
    if not foreign:
        return None
    if name == "protein":
        return f"{foreign:,} of {total:,} {what} look like nucleotides, but are read as protein"
    return (
        f"{foreign:,} of {total:,} {what} are mostly unknown letters ({tokenizer.alphabet.unknown})"
    )


def _blocks(dataset: SequenceDataset, vocab_size: int) -> Iterator[Int64[np.ndarray, "B V"]]:
    """Counts of the tokens in each record, padding left out, so many records at a time."""
    for first in range(0, len(dataset), _BLOCK):
        offsets = dataset.offsets[first : first + _BLOCK + 1]
        if offsets[-1] - offsets[0] > _MANY_TOKENS:
            yield _counts_one_by_one(dataset.tokens, offsets, vocab_size)[:, 1:]
            continue
        owners = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        cells = owners * vocab_size + dataset.tokens[offsets[0] : offsets[-1]]
        counts = np.bincount(cells, minlength=(len(offsets) - 1) * vocab_size)
        yield counts.reshape(-1, vocab_size)[:, 1:]


def _counts_one_by_one(
    tokens: np.ndarray, offsets: Int64[np.ndarray, " S"], vocab_size: int
) -> Int64[np.ndarray, "B V"]:
    """The same a piece at a time: to count them, tokens become integers of eight bytes each."""
    counts = np.zeros((len(offsets) - 1, vocab_size), np.int64)
    for record, (begin, end) in enumerate(pairwise(offsets.tolist())):
        for start in range(begin, end, _MANY_TOKENS):
            piece = tokens[start : min(end, start + _MANY_TOKENS)]
            counts[record] += np.bincount(piece, minlength=vocab_size)
    return counts


def _freeman_tukey(
    counts: Int64[np.ndarray, "B V"], shares: Float[np.ndarray, " V"]
) -> Float[np.ndarray, " B"]:
    lengths = counts.sum(axis=1)
    affinity = np.sqrt(counts * shares).sum(axis=1) / np.sqrt(np.maximum(1, lengths))
    return np.asarray(8 * lengths * (1 - affinity))


def _is_foreign(counts: Int64[np.ndarray, "B V"], tokenizer: Tokenizer) -> np.ndarray:
    """Nucleotides read as protein; or letters that are mostly none of the alphabet."""
    letters, unknown = tokenizer.vocab[1:], tokenizer.alphabet.unknown
    is_protein = tokenizer.alphabet.name == "protein"
    telling = _NUCLEOTIDES + unknown if is_protein else unknown
    share = counts[:, [letter in telling for letter in letters]].sum(axis=1)
    lengths = counts.sum(axis=1)
    strange = share >= (_NUCLEOTIDE_SHARE if is_protein else 0.5) * lengths
    return np.asarray(strange & (lengths >= _FEWEST_LETTERS))
