"""Errors that a user can fix. The command line prints one message and exits with 1.

A broken promise between our own functions stays ``ValueError`` or ``TypeError``.
"""


class SeqtrainError(Exception):
    """Something the user can fix; the message says where, what was found, and the fix."""


class ConfigError(SeqtrainError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class DataError(SeqtrainError):
    """The input files do not fit together or hold too little."""


class FastaError(DataError):
    """A FASTA file cannot be read, or holds records that cannot be used."""


class LabelError(DataError):
    """A label is missing, malformed, or does not fit its record."""


class CheckpointError(SeqtrainError):
    """A run directory or checkpoint is missing, damaged, or of another model."""


class TrainingError(SeqtrainError):
    """Training cannot go on, for instance because the loss is not finite."""


class ExportError(SeqtrainError):
    """A model cannot be written in the wanted format, or differs after writing."""


class SeqtrainWarning(UserWarning):
    """Something that a user should know and that stops nothing; printed as one line."""
