"""Tokenized records of the files that training is given: FASTA, or stores made of it before."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial

from seqtrain.data.alphabet import ALPHABETS
from seqtrain.data.fasta import reject, reject_message
from seqtrain.data.files import read_lines, shown
from seqtrain.data.places import Places
from seqtrain.data.store import is_store, open_store
from seqtrain.data.tokenized import Headers, Tokenized, limit, looks_like, tokenize_fasta
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.errors import ConfigError, DataError, FastaError


def read_tokenized(
    paths: Sequence[str],
    settings: Mapping[str, str | None],
    max_length: int | None = None,
    overlong: str = "error",
    policy_form: str = "",
) -> tuple[list[Tokenized], Tokenizer]:
    """The records of all files in order: of FASTA in one piece, of stores in one each.

    Args:
        paths: FASTA files, one of which may be ``-``, or stores.
        settings: Those of a tokenizer; no ``alphabet``: told from all letters, or the stores'.
        max_length: Longest sequence in tokens; none: no limit.
        overlong: What happens to longer ones: ``error``, ``truncate`` or ``skip``.
        policy_form: How the user sets a policy for letters, as in ``tokenize_fasta``.

    Raises:
        FastaError: A file or some of its records cannot be used.
        DataError: A store cannot be read, or is given beside FASTA.
        ConfigError: A setting is not known, or is not that of the stores.
    """
    stores = [path for path in paths if is_store(path)]
    if not stores:
        data, tokenizer = tokenize_fasta(
            paths, partial(_tokenizer_for, settings), max_length, overlong, policy_form=policy_form
        )
        return [data], tokenizer
    if fasta := next((path for path in paths if path not in stores), None):
        next(read_lines(fasta, FastaError), None)  # tells what is no file at all
        raise DataError(
            f"{shown(fasta)}: expected a store as {stores[0]} is, found something else. Give "
            "stores alone or FASTA files alone."
        )
    opened = [open_store(path) for path in stores]
    tokenizer = opened[0][1]
    _check_settings(stores[0], tokenizer, settings)
    for path, (_, other) in zip(stores, opened, strict=True):
        _check_alike(stores[0], tokenizer, path, other)
    pieces = [data for data, _ in opened]
    if len(pieces) > 1:
        _refuse_repeats(Headers(pieces))
    return limit(pieces, max_length, overlong), tokenizer


def _tokenizer_for(settings: Mapping[str, str | None], letters: Mapping[str, int]) -> Tokenizer:
    """The tokenizer of these settings, its alphabet told from counted letters if not given."""
    given = {name: value for name, value in settings.items() if value is not None}
    standard = Tokenizer(ALPHABETS[looks_like(letters)]).to_dict()
    return Tokenizer.from_dict({**standard, **given})


def _check_settings(path: str, tokenizer: Tokenizer, wanted: Mapping[str, str | None]) -> None:
    for name, found in tokenizer.to_dict().items():
        if wanted[name] not in (None, found):
            raise ConfigError(
                f"tokenizer.{name}={wanted[name]}: {path} was tokenized with {found}. Set "
                f"tokenizer.{name}={found}, or make the stores anew with `seqtrain data tokenize "
                f"--{name} {wanted[name]}`."
            )


def _check_alike(path: str, tokenizer: Tokenizer, other_path: str, other: Tokenizer) -> None:
    found = other.to_dict()
    for name, expected in tokenizer.to_dict().items():
        if found[name] != expected:
            raise DataError(
                f"{other_path}: was tokenized with --{name} {found[name]}, {path} with {expected}. "
                "Make both with the same."
            )


def _refuse_repeats(headers: Headers) -> None:
    """An id that is in two stores; each by itself was checked when it was made."""
    rejects = []
    with closing(Places()) as places:
        for i, header in enumerate(headers):
            before = places.first(header.id, i)
            if before is not None:
                where = f"the id is in {headers[before].source} too; ids must be unique"
                rejects.append(reject(header, where))
    if rejects:
        raise FastaError(reject_message(rejects))
