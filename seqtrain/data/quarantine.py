"""Usable records and the others as two files, for `seqtrain data check --on-error quarantine`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from seqtrain.data.check import Check
from seqtrain.data.files import STDIN, read_lines, whole_file
from seqtrain.errors import FastaError


def quarantine_files(fasta: Sequence[str]) -> tuple[Path, Path]:
    """The two files in the current folder, named after the first input."""
    stem = "stdin" if fasta[0] == STDIN else Path(fasta[0]).name.split(".")[0]
    return Path(f"{stem}.clean.fasta"), Path(f"{stem}.rejects.tsv")


def write_quarantine(
    found: Check, fasta: Sequence[str], *, overwrite: bool = False
) -> tuple[Path, Path]:
    """Write the usable records and the places of the others into the current folder.

    Usable records are copied as they are written: header, line breaks and letter case. Those of
    standard input, which is read only once, come with their header and one line of upper case.

    Returns:
        The two files, named after the first input.

    Raises:
        FastaError: One of them exists already, and is not to be replaced.
    """
    clean, rejected = quarantine_files(fasta)
    for path in (clean, rejected):
        if path.exists() and not overwrite:
            raise FastaError(f"{path}: exists already. Move it away first.")
    rows = ("\t".join((r.id, r.source, str(r.line), r.reason)) for r in found.rejects)
    with (
        whole_file(clean) as records,
        whole_file(rejected) as table,
        records.open("w", encoding="utf-8") as clean_file,
        table.open("w", encoding="utf-8") as reject_file,
    ):
        for source in dict.fromkeys(fasta):
            clean_file.writelines(_usable(found, source))
        reject_file.write("id\tfile\tline\treason\n")
        reject_file.writelines(f"{row}\n" for row in rows)
    return clean, rejected


def _usable(found: Check, source: str) -> Iterator[str]:
    """Lines of the usable records of one file."""
    records = [record for record in found.records if record.source == source]
    if source == STDIN:
        for record in records:
            yield f">{' '.join(filter(None, (record.id, record.description)))}\n"
            yield f"{record.sequence}\n"
        return
    headers = {record.line for record in records}
    is_usable = False
    for number, line in enumerate(read_lines(source, FastaError), 1):
        if line.startswith(">"):
            is_usable = number in headers
        if is_usable:
            yield line if line.endswith("\n") else f"{line}\n"
