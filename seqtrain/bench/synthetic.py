"""Made-up records of protein-like lengths, with something to learn in them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from seqtrain.data.alphabet import ALPHABETS
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.labels import LabelCodec
from seqtrain.data.tokenizer import Tokenizer

MEDIAN, SPREAD, SHORTEST, LONGEST = 180, 0.7, 30, 1000

CLASSES = ("a", "b", "c", "d")
TOKENIZER = Tokenizer(ALPHABETS["protein"])
CODEC = LabelCodec("classification", CLASSES)
LETTERS = ALPHABETS["protein"].letters


def draw_lengths(number: int, seed: int = 0) -> Int64[np.ndarray, " N"]:
    """Log-normal, as those of proteins are: median 180, clipped to 30 to 1000."""
    drawn = np.random.default_rng(seed).lognormal(np.log(MEDIAN), SPREAD, number)
    return drawn.clip(SHORTEST, LONGEST).astype(np.int64)


def draw_dataset(number: int, seed: int = 0, length: int | None = None) -> SequenceDataset:
    """Random residues in which each class has its own word of four, at one place in forty.

    Args:
        number: Records.
        seed: Of lengths, residues and classes.
        length: Of every record, instead of protein-like ones.
    """
    rng = np.random.default_rng([seed, 1])
    lengths = draw_lengths(number, seed) if length is None else np.full(number, length)
    classes = rng.integers(0, len(CLASSES), number)
    # The words are those of every seed, so that what one data set teaches holds in another.
    words = np.random.default_rng(0).integers(1, len(LETTERS) + 1, (len(CLASSES), 4))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    tokens = rng.integers(1, len(LETTERS) + 1, offsets[-1]).astype(np.uint8)
    for record, of_class in enumerate(classes.tolist()):
        size = int(lengths[record])
        places = rng.integers(0, max(1, size - 4), 1 + size // 40) + offsets[record]
        tokens[places[:, None] + np.arange(min(4, size))] = words[of_class][: min(4, size)]
    ids = [f"s{i}" for i in range(number)]
    return SequenceDataset(ids, tokens, offsets, classes.astype(np.int64))


def write_fasta(path: Path, dataset: SequenceDataset, first: int = 0) -> None:
    """Append the records to a FASTA file, sixty letters a line."""
    with path.open("a", encoding="ascii") as file:
        for number, sequence in enumerate(_sequences(dataset)):
            file.write(f">s{first + number}\n")
            file.writelines(f"{sequence[i : i + 60]}\n" for i in range(0, len(sequence), 60))


def _sequences(dataset: SequenceDataset) -> Iterator[str]:
    letters = np.frombuffer((" " + "".join(LETTERS)).encode(), dtype=np.uint8)
    text = letters[dataset.tokens].tobytes().decode()
    for begin, end in zip(dataset.offsets[:-1].tolist(), dataset.offsets[1:].tolist(), strict=True):
        yield text[begin:end]
