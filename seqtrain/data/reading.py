"""Tokenized records of the files that training is given: FASTA, or stores made of it before."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial

from seqtrain.data.fasta import reject, reject_message
from seqtrain.data.files import shown
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
) -> tuple[list[Tokenized], Tokenizer]:
    """The records of all files in order: of FASTA in one piece, of stores in one each.

    Args:
        paths: FASTA files, one of which may be ``-``, or stores.
        settings: Those of a tokenizer; no ``alphabet``: told from all letters, or the stores'.
        max_length: Longest sequence in tokens; none: no limit.
        overlong: What happens to longer ones: ``error``, ``truncate`` or ``skip``.

    Raises:
        FastaError: A file or some of its records cannot be used.
        DataError: A store cannot be read, or is given beside FASTA.
        ConfigError: A setting is not known, or is not that of the stores.
    """
    stores = [path for path in paths if is_store(path)]
    if not stores:
        data, tokenizer = tokenize_fasta(
            paths, partial(_tokenizer_for, settings), max_length, overlong
        )
        return [data], tokenizer
    if fasta := next((path for path in paths if path not in stores), None):
        raise DataError(
            f"{shown(fasta)}: expected a store as {stores[0]} is, found something else. Give "
            "stores alone or FASTA files alone."
        )
    pieces = []
    for path in stores:
        data, tokenizer = open_store(path)
        _check_settings(path, tokenizer, settings)
        settings = tokenizer.to_dict()
        pieces.append(limit(data, max_length, overlong))
    if len(pieces) > 1:
        _refuse_repeats(Headers(pieces))
    return pieces, tokenizer


def _tokenizer_for(settings: Mapping[str, str | None], letters: Mapping[str, int]) -> Tokenizer:
    """The tokenizer of these settings, its alphabet told from counted letters if not given."""
    given = {name: value for name, value in settings.items() if value is not None}
    return Tokenizer.from_dict({"alphabet": looks_like(letters), **given})


def _check_settings(path: str, tokenizer: Tokenizer, wanted: Mapping[str, str | None]) -> None:
    for name, found in tokenizer.to_dict().items():
        if wanted[name] not in (None, found):
            raise ConfigError(
                f"tokenizer.{name}={wanted[name]}: {path} was tokenized with {found}. Set "
                f"tokenizer.{name}={found}, or make all stores anew with `seqtrain data tokenize`."
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
