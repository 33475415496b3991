"""The rule for records that are longer than those a model was trained on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from seqtrain.errors import ConfigError

READINGS = ("error", "truncate", "skip", "whole")
TRUNCATED, LEFT_OUT = "truncated", "left out"
"""Warnings of one record."""


@dataclass(frozen=True)
class LengthRule:
    """The same in `eval`, `predict` and `embed`: by default as `data.overlong` was in training.

    Raises:
        ConfigError: ``overlong`` is something else, or there is no length to go by.
    """

    max_length: int | None = None
    """Longest sequence of the training, in residues; none: there was no limit."""
    overlong: str = "whole"
    """``error``: a longer record is a bad one. ``truncate``: its first residues are read.
    ``skip``: it is left out, and its row says so. ``whole``: it is read as it is."""
    room: int | None = None
    """Longest sequence that fits into memory in one pass; none: not known, or of no matter. A
    longer one is a bad record."""

    def __post_init__(self) -> None:
        if self.overlong not in READINGS:
            raise ConfigError(
                f"--overlong: expected one of {', '.join(READINGS)}, found {self.overlong!r}."
            )
        if self.max_length is None and self.overlong != "whole":
            raise ConfigError(
                f"--overlong {self.overlong}: the model was trained without data.max_length, so no "
                "record is too long for it. Leave it out."
            )

    @classmethod
    def of_training(cls, max_length: int | None, overlong: str) -> "LengthRule":
        """The rule of the settings ``data.max_length`` and ``data.overlong``."""
        return cls() if max_length is None else cls(max_length, overlong)

    @property
    def bound(self) -> int | None:
        """Longest sequence that is read as it is; None: each one is."""
        return None if self.overlong == "whole" else self.max_length

    def truncates(self, length: int) -> bool:
        """True if only the first residues of a record are read."""
        return self.overlong == "truncate" and self._is_long(length)

    def why_not(self, length: int) -> str | None:
        """Reason why a record is not read for what the model was trained on; None if it is."""
        if self.overlong not in ("error", "skip") or not self._is_long(length):
            return None
        reason = f"{length} residues are more than data.max_length={self.max_length} of the model"
        if self.overlong == "skip":
            return f"{reason}; left out (overlong=skip)"
        return f"{reason}; read it with --overlong truncate, or in windows with --window"

    def no_room(self, length: int) -> str | None:
        """Reason why so many residues cannot be read in one pass; None if they can."""
        if self.room is None or length <= self.room:
            return None
        return (
            f"{length:,} residues do not fit into memory in one pass, about {self.room:,} do; read "
            "it in windows, for instance with --window 1000"
        )

    def _is_long(self, length: int) -> bool:
        return self.max_length is not None and length > self.max_length

    @property
    def description(self) -> str:
        """Words on over-long records for a table's first line; empty where none is changed."""
        done = {"truncate": "are cut to that", "skip": "are left out"}.get(self.overlong)
        return f"records of more than {self.max_length} residues {done}" if done else ""

    def sentences(self, counts: Mapping[str, int], total: int) -> Iterator[str]:
        """A summary of what was done to over-long records.

        Args:
            counts: How many records got each warning.
            total: How many records there were.
        """
        done = {TRUNCATED: "are cut to that", LEFT_OUT: "are left out"}
        for name, words in done.items():
            if counts.get(name):
                yield (
                    f"{counts[name]:,} of {total:,} records are longer than the model's "
                    f"data.max_length={self.max_length} and {words} (overlong={self.overlong}); "
                    "to read all of them, use --window N or --overlong whole"
                )
