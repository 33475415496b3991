"""Residues hidden from a masked language model, which it is then asked for.

What is hidden in a record follows from its residues, a seed and an epoch by a counter-based hash:
splitmix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195). No generator runs along, so
neither the batch nor the order nor an interruption can change it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, UInt8, UInt64

from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.labels import IGNORE
from seqtrain.data.ragged import shares
from seqtrain.data.tokenizer import Tokenizer

MASK_FRACTION = 0.15
"""Share of the letters that are hidden, as in BERT (Devlin et al. 2019, arXiv:1810.04805)."""

_EVALUATION_SEED = 2**63
"""Of no training: seeds of runs are smaller."""

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_LARGEST = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Corruption:
    """Hides some letters of every record and keeps them as targets.

    Letters without a canonical residue of their own (unknown, ambiguity codes) are neither hidden
    nor asked for. A record with a canonical letter has at least one hidden.

    Raises:
        ValueError: A share lies outside 0 to 1, or the two together above 1.
    """

    num_letters: int
    """Canonical letters, which have the tokens from 1."""
    mask_token: int
    """Stands for a hidden residue; no residue has it."""
    fraction: float = MASK_FRACTION
    """Share of the letters that are hidden."""
    masked: float = 0.8
    """Share of the hidden ones that show the mask token."""
    replaced: float = 0.1
    """Share of the hidden ones that show any canonical letter; the rest show their own."""
    seed: int = 0

    def __post_init__(self) -> None:
        shares = (self.fraction, self.masked, self.replaced, self.masked + self.replaced)
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError(f"expected shares between 0 and 1, received {shares}")

    @classmethod
    def for_training(cls, tokenizer: Tokenizer, fraction: float, seed: int) -> "Corruption":
        """BERT's: of the hidden letters 80 % masked, 10 % replaced and 10 % shown, by epoch."""
        return cls(len(tokenizer.alphabet.letters), tokenizer.vocab_size, fraction, seed=seed)

    @classmethod
    def for_evaluation(cls, tokenizer: Tokenizer) -> "Corruption":
        """The same for every run that reads letters alike, so that scores of a file compare.

        All hidden letters are masked: where a tenth of those asked for are in plain sight, a model
        that reads nothing but these beats the letters' frequencies.
        """
        letters, mask = len(tokenizer.alphabet.letters), tokenizer.vocab_size
        return cls(letters, mask, masked=1, replaced=0, seed=_EVALUATION_SEED)

    def __call__(self, dataset: SequenceDataset, epoch: int = 0) -> SequenceDataset:
        """The records with letters hidden; targets are these, and ``IGNORE`` for all others.

        Args:
            dataset: Any records; their targets are left aside.
            epoch: Each one hides other letters.
        """
        tokens = np.empty_like(dataset.tokens)
        targets = np.empty(len(tokens), np.int64)
        for first, last in shares(dataset.lengths):  # a draw takes eight times a token's memory
            offsets = dataset.offsets[first : last + 1]
            part = slice(offsets[0], offsets[-1])
            tokens[part], targets[part] = self._hide(
                dataset.tokens[part], np.diff(offsets), self._key(epoch)
            )
        return SequenceDataset(dataset.ids, tokens, dataset.offsets, targets, per_residue=True)

    def _key(self, epoch: int) -> UInt64[np.ndarray, " 1"]:
        return np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)

    def _hide(
        self,
        tokens: UInt8[np.ndarray, " R"],
        lengths: Int64[np.ndarray, " N"],
        key: UInt64[np.ndarray, " 1"],
    ) -> tuple[UInt8[np.ndarray, " R"], Int64[np.ndarray, " R"]]:
        """Tokens and targets of records end to end."""
        lengths = lengths[lengths > 0]
        starts = np.cumsum(lengths) - lengths
        record = np.repeat(np.arange(len(lengths)), lengths)
        counter = (np.arange(len(tokens)) - starts[record] + 1).astype(np.uint64) * _STEP
        digest = np.add.reduceat(_mix(counter + tokens), starts) if len(starts) else counter
        draws = _mix(_mix(digest ^ key)[record] + counter)
        is_letter = (tokens >= 1) & (tokens <= self.num_letters)
        # The lowest draw of a record is among those below the fraction, or is the one to take.
        ranked = np.where(is_letter, draws, _LARGEST)
        lowest = np.minimum.reduceat(ranked, starts) if len(starts) else ranked
        hidden = np.flatnonzero(
            is_letter & ((_unit(draws) < self.fraction) | (draws == lowest[record]))
        )
        targets = np.full(len(tokens), IGNORE, dtype=np.int64)
        targets[hidden] = tokens[hidden].astype(np.int64) - 1  # classes are in token order
        shown = tokens.copy()
        shown[hidden] = self._shown(tokens[hidden], _mix(draws[hidden] + _STEP))
        return shown, targets

    def _shown(
        self, tokens: UInt8[np.ndarray, " H"], draws: UInt64[np.ndarray, " H"]
    ) -> UInt8[np.ndarray, " H"]:
        """What stands where letters are hidden."""
        fate = _unit(draws)
        letters = 1 + _mix(draws + _STEP) % np.uint64(self.num_letters)
        is_replaced = fate < self.masked + self.replaced
        shown = np.where(is_replaced, letters.astype(np.uint8), tokens)
        return np.where(fate < self.masked, np.uint8(self.mask_token), shown)


def restored(dataset: SequenceDataset, mask_token: int) -> SequenceDataset:
    """Records with the letters that hide behind mask tokens; the same dataset where none does."""
    hidden = np.flatnonzero(dataset.tokens == mask_token)
    if not len(hidden) or dataset.targets is None:
        return dataset
    tokens = dataset.tokens.copy()
    tokens[hidden] = dataset.targets[hidden] + 1  # classes are in token order
    return SequenceDataset(dataset.ids, tokens, dataset.offsets)


def count_letters(dataset: SequenceDataset, num_letters: int) -> Int64[np.ndarray, " K"]:
    """Counts of the canonical letters, hidden ones left out."""
    counts = np.zeros(num_letters, np.int64)
    found = dataset.token_counts()[1 : 1 + num_letters]
    counts[: len(found)] = found
    return counts


def _unit(draws: UInt64[np.ndarray, " R"]) -> Float64[np.ndarray, " R"]:
    """Numbers in [0, 1)."""
    return (draws >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: UInt64[np.ndarray, " R"]) -> UInt64[np.ndarray, " R"]:
    """The finalizer of splitmix64: every bit of ``x`` reaches every bit of the result."""
    x = (x ^ (x >> np.uint64(30))) * _FACTORS[0]
    x = (x ^ (x >> np.uint64(27))) * _FACTORS[1]
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed
