"""Compares the results of two programs, and finds where they differ most."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from seqtrain.data.batching import collate
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.fasta import read_fasta
from seqtrain.data.labels import LabelCodec, is_residue
from seqtrain.evaluation.predict import Predictor
from seqtrain.export.program import Runner
from seqtrain.training.checkpoint import LoadedRun

TOLERANCE = 1e-4
"""Largest difference that still counts as the same: of a probability, or of a regression's value
in standard deviations of the training targets."""


BATCH_RECORDS = 8
"""Records that a checked program gets at a time, padded to the longest."""


class Parity(NamedTuple):
    """How far results of two programs lie apart."""

    records: int
    worst: float
    """Largest difference, in the unit of ``TOLERANCE``; infinite where only one is a number."""
    id: str | None
    """The record with the largest difference."""

    @property
    def passed(self) -> bool:
        """True if the results are the same."""
        return self.worst <= TOLERANCE


def difference(found: np.ndarray, expected: np.ndarray, codec: LabelCodec) -> float:
    """Largest difference between the results for one record, in the unit of ``TOLERANCE``."""
    if found.shape != expected.shape:
        return float("inf")
    apart = np.abs(found.astype(np.float64) - expected.astype(np.float64)) / codec.std
    return float(np.nan_to_num(apart, nan=np.inf, posinf=np.inf).max(initial=0.0))


def check_parity(loaded: LoadedRun, run: Runner, fasta: Sequence[str]) -> Parity:
    """How far a program's results for real records lie from what seqtrain predicts.

    Args:
        loaded: The model that was exported, on the host.
        run: The exported program; it gets padded batches in the order of the files.
        fasta: FASTA files.

    Raises:
        FastaError: A record cannot be used.
    """
    records = read_fasta(fasta)
    expected = Predictor.of([loaded], torch.device("cpu"), overlong="whole")(iter(records))
    ids = [record.id for record in records]
    tokens = [loaded.tokenizer.encode(record.sequence) for record in records]
    found = _run_all(run, SequenceDataset.from_lists(ids, tokens), loaded.codec)
    apart = [
        difference(values, np.asarray(prediction.values), loaded.codec)
        for values, prediction in zip(found, expected, strict=True)
    ]
    worst = int(np.argmax(apart))
    return Parity(len(apart), apart[worst], ids[worst])


def _run_all(run: Runner, dataset: SequenceDataset, codec: LabelCodec) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    for start in range(0, len(dataset), BATCH_RECORDS):
        batch = collate(dataset, np.arange(start, min(start + BATCH_RECORDS, len(dataset))))
        lengths = batch.lengths.numpy()
        results = run(batch.tokens.numpy(), lengths)
        found += [
            np.asarray(values[:length] if is_residue(codec.task) else values)
            for values, length in zip(results, lengths.tolist(), strict=True)
        ]
    return found
