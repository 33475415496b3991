"""A trained model in Python: ``load_model(path)``, then ``predict`` and ``embed``."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch

from seqtrain.data.fasta import Record, Reject, scan_fasta
from seqtrain.errors import ConfigError
from seqtrain.evaluation.embed import Embedding, embed_records
from seqtrain.evaluation.predict import Predictor, check_ensemble, length_rule
from seqtrain.evaluation.tables import Table
from seqtrain.evaluation.windows import Windows
from seqtrain.export.bundle import open_run
from seqtrain.nn.model import SequenceModel
from seqtrain.training.calibration import calibration_words
from seqtrain.training.checkpoint import LoadedRun
from seqtrain.training.device import choose_device

if TYPE_CHECKING:
    from Bio.SeqRecord import SeqRecord

    Sequences = str | os.PathLike[str] | SeqRecord | Iterable[str | os.PathLike[str] | SeqRecord]
else:
    Sequences = Any

_FILE = re.compile(r"[/\\]|\.(fa|fas|fasta|faa|fna|ffn|gz|bz2|xz)$")


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model says of one sequence."""

    id: str
    """Of the record; ``sequence_1``, ``sequence_2``, ... for plain strings."""
    length: int
    """Residues read."""
    status: str
    """``ok``, or why there is no prediction."""
    prediction: str | float | None
    """A class, classes joined, a value in the target's unit, or one class per letter."""
    probabilities: dict[str, float] | None
    """Of each class; None for a regression and for residues, whose are in ``values``."""
    values: np.ndarray | None
    """float32: ``(K,)``, ``()`` for a regression, ``(length, K)`` by residue."""
    spread: np.ndarray | None = None
    """Standard deviation of ``values`` over the members of an ensemble; None for one model."""
    members: tuple[np.ndarray, ...] = ()
    """What each member says; none for one model."""
    warnings: tuple[str, ...] = ()
    """In what the sequence is unlike those of the training: ``alphabet``, ``length``,
    ``composition``; ``truncated`` or ``left out`` where it is too long for the model."""


class TrainedModel:
    """A model that reads sequences; what it says of one does not depend on the others.

    Sequences are given as strings, ``Bio.SeqRecord``, paths of FASTA files, or any iterable of
    these, also a generator. A string by itself is a file if it looks like one's name. Those longer
    than ``data.max_length`` of the training are read as there: cut, left out or refused.
    """

    def __init__(self, members: Sequence[LoadedRun], device: str = "auto"):
        self._members = members
        self._loaded = members[0]
        self.device: torch.device = choose_device(device)
        for member in members:
            member.model.to(self.device)

    @property
    def module(self) -> torch.nn.Module:
        """The ``torch.nn.Module``, called with padded tokens and lengths.

        Raises:
            ConfigError: There are several: this is an ensemble.
        """
        if len(self._members) > 1:
            raise ConfigError("an ensemble has several modules. Load one of its models by itself.")
        return self._loaded.model

    @property
    def calibration(self) -> str:
        """What probabilities are calibrated by, in words, or ``uncalibrated``."""
        return calibration_words([member.calibration for member in self._members])

    @property
    def task(self) -> str:
        """What is predicted."""
        return self._loaded.codec.task

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of ``Answer.values``; none for a regression."""
        return self._loaded.codec.classes

    @property
    def alphabet(self) -> str:
        """``protein``, ``dna`` or ``rna``."""
        return self._loaded.tokenizer.alphabet.name

    def predict(
        self,
        sequences: Sequences,
        *,
        on_error: str = "fail",
        batch_size: int | None = None,
        window: int | None = None,
        overlap: int | None = None,
    ) -> list[Answer]:
        """One answer per sequence, in order.

        Args:
            sequences: See above.
            on_error: ``fail``, or ``skip``: say in ``status`` what is wrong with a sequence.
            batch_size: Padded positions per batch; as in training when not given.
            window: Read longer sequences in windows of so many residues; none: in one piece.
            overlap: Of windows; a quarter of one when not given.

        Raises:
            FastaError: A sequence cannot be read and ``on_error`` is ``fail``.
            ConfigError: An argument is out of range.
        """
        return list(
            self.stream(
                sequences,
                on_error=on_error,
                batch_size=batch_size,
                window=window,
                overlap=overlap,
            )
        )

    def stream(
        self,
        sequences: Sequences,
        *,
        on_error: str = "fail",
        batch_size: int | None = None,
        window: int | None = None,
        overlap: int | None = None,
    ) -> Iterator[Answer]:
        """The answers of :meth:`predict` while they are made, in constant memory."""
        predictor = Predictor.of(
            self._members,
            self.device,
            max_tokens=batch_size,
            on_error=_checked(on_error),
            windows=Windows.of(window, overlap),
        )
        table = Table(self._loaded.codec)
        for found in predictor(_entries(sequences)):
            answer, named = None, None
            if found.values is not None:
                answer = table.answer(found.values, found.kept)
                if table.has_probabilities:
                    named = dict(zip(self.classes, found.values.tolist(), strict=True))
            yield Answer(
                found.id,
                found.length,
                found.status,
                answer,
                named,
                found.values,
                found.spread,
                found.members,
                found.warnings,
            )

    @overload
    def embed(
        self,
        sequences: Sequences,
        *,
        per_residue: Literal[False] = False,
        pooling: str = "mean",
        layer: int = -1,
        batch_size: int | None = None,
    ) -> np.ndarray: ...
    @overload
    def embed(
        self,
        sequences: Sequences,
        *,
        per_residue: Literal[True],
        pooling: str = "mean",
        layer: int = -1,
        batch_size: int | None = None,
    ) -> list[np.ndarray]: ...
    @overload
    def embed(
        self,
        sequences: Sequences,
        *,
        per_residue: bool,
        pooling: str = "mean",
        layer: int = -1,
        batch_size: int | None = None,
    ) -> np.ndarray | list[np.ndarray]: ...
    def embed(
        self,
        sequences: Sequences,
        *,
        per_residue: bool = False,
        pooling: str = "mean",
        layer: int = -1,
        batch_size: int | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """Vectors that the encoder gives to sequences.

        Args:
            sequences: See above.
            per_residue: A vector for each residue.
            pooling: ``mean`` or ``max`` over the residues of a sequence.
            layer: 0 is the embedding, ``i`` the ``i``-th block, -1 what the head sees.
            batch_size: Padded positions per batch; as in training when not given.

        Returns:
            A float32 array ``(N, C)``; with ``per_residue`` a list of arrays ``(length, C)``. A
            sequence that is left out because it is too long for the model is a row of NaN, or has
            length 0.

        Raises:
            FastaError: A sequence cannot be read.
            ConfigError: There is no such layer or pooling, or this is an ensemble.
        """
        module = self.module
        assert isinstance(module, SequenceModel)
        budget = batch_size or self._loaded.config.batching.max_tokens
        assert budget is not None, "the budget is chosen before training"
        embeddings: Iterator[Embedding] = embed_records(
            module,
            self._loaded.tokenizer,
            _entries(sequences),
            max_tokens=budget,
            per_residue=per_residue,
            pooling=pooling,
            layer=layer,
            lengths=length_rule(self._loaded, None, None),
        )
        width: int = module.encoder.embed_dim  # type: ignore[assignment]
        missing = np.full((0, width) if per_residue else width, np.nan, np.float32)
        vectors = [missing if each.values is None else each.values for each in embeddings]
        if per_residue:
            return vectors
        return np.stack(vectors) if vectors else np.empty((0, width), np.float32)


def load_model(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    device: str = "auto",
    *,
    calibrated: bool = True,
) -> TrainedModel:
    """The trained model of a run directory or an exported bundle, or an ensemble of several.

    Args:
        path: What ``seqtrain train -o`` or ``seqtrain export --format bundle`` made; a list of
            these is an ensemble, whose answers are means.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        calibrated: Probabilities by the temperatures fitted on the validation part, where there
            are any; False: as trained.

    Raises:
        CheckpointError: There is no such thing, or it is damaged.
        ConfigError: The models of an ensemble do not answer the same question.
    """
    paths = [path] if isinstance(path, str | os.PathLike) else path
    members = {os.fspath(each): open_run(Path(each), calibrated=calibrated) for each in paths}
    if not members:
        raise ConfigError("load_model: expected at least one run, found an empty list.")
    check_ensemble(members)
    return TrainedModel(list(members.values()), device)


def _checked(on_error: str) -> str:
    if on_error not in ("fail", "skip"):
        raise ConfigError(f"on_error: expected fail or skip, found {on_error!r}.")
    return on_error


def _entries(sequences: Any) -> Iterator[Record | Reject]:
    if isinstance(sequences, str) and (_FILE.search(sequences) or Path(sequences).is_file()):
        sequences = Path(sequences)
    if isinstance(sequences, str | os.PathLike) or hasattr(sequences, "seq"):
        sequences = [sequences]
    number = count(1)
    for item in sequences:
        if isinstance(item, os.PathLike):
            yield from scan_fasta([os.fspath(item)])
        elif isinstance(item, str):
            place = next(number)
            yield Record(f"sequence_{place}", "", item, "input", place, place - 1)
        elif hasattr(item, "seq"):
            place = next(number)
            yield Record(
                item.id or f"sequence_{place}", "", str(item.seq), "input", place, place - 1
            )
        else:
            raise TypeError(
                f"expected a sequence as a string or Bio.SeqRecord, or a path, found {item!r}"
            )
