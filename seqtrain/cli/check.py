"""`seqtrain data check`: whether training would take some files, and what is wrong with them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seqtrain.cli import options
from seqtrain.errors import FastaError
from seqtrain.escaping import print

if TYPE_CHECKING:
    from seqtrain.data.check import Check


def check(
    fasta: options.Fasta,
    labels: options.LabelFiles = None,
    splits: options.SplitFiles = None,
    label_column: options.LabelColumn = None,
    id_column: options.IdColumn = None,
    split_column: options.SplitColumn = None,
    task: options.Task = None,
    decimal: options.Decimal = None,
    alphabet: options.Alphabet = None,
    on_error: Annotated[
        str,
        typer.Option(
            "--on-error",
            help="fail; skip: leave out records without a label, report and exit with 0; "
            "quarantine: also write the usable records to NAME.clean.fasta and the others' places "
            "and reasons to NAME.rejects.tsv.",
        ),
    ] = "fail",
    json: Annotated[Path | None, typer.Option("--json", help="Write the report as JSON.")] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Say what is in the files and what is wrong with them, record by record.

    With labels, in a file or in the headers, they are read as `seqtrain train` reads them, and
    what it would refuse is refused.
    """
    if on_error not in ("fail", "skip", "quarantine"):
        raise typer.BadParameter("--on-error takes fail, skip or quarantine.")
    from seqtrain.data.check import check_files
    from seqtrain.data.outputs import Output, check_outputs, write_report
    from seqtrain.data.own_files import is_report
    from seqtrain.data.quarantine import quarantine_files, write_quarantine
    from seqtrain.reporting import to_json

    written = [Output("--json", json, is_report("facts", "rejects"), streams=True)]
    if on_error == "quarantine":
        written += [Output("--on-error quarantine:", path) for path in quarantine_files(fasta)]
    check_outputs(written, [*fasta, *(labels or []), *(splits or [])], overwrite=overwrite)
    found = check_files(
        fasta,
        labels or (),
        splits=splits or (),
        label_column=label_column,
        id_column=id_column,
        split_column=split_column,
        task=task,
        decimal=decimal,
        alphabet=alphabet,
        on_error="fail" if on_error == "fail" else "skip",
    )
    if json is not None:
        write_report(json, to_json(found.to_dict(), indent=1) + "\n")
    _say_labels(found)
    _print_check(found)
    if on_error == "quarantine":
        clean, rejected = write_quarantine(found, fasta, overwrite=overwrite)
        used, others = len(found.records), len(found.rejects)
        print(
            f"{used + others:,} records: {used:,} written to {clean}, "
            f"{others:,} listed in {rejected}",
            file=sys.stderr,
        )
    with options.named_as_options():
        if on_error == "fail" and (refusal := found.refusal()):
            raise FastaError(refusal)
    if found.fault:
        print(f"warning: `seqtrain train` would refuse: {found.fault}", file=sys.stderr)


def _say_labels(found: "Check") -> None:
    if found.data is not None:
        options.say_labels(found.data.report)
        for warning in found.data.report["warnings"]:
            print(f"warning: {warning}", file=sys.stderr)


def _print_check(found: "Check") -> None:
    from seqtrain.reporting import stdout_console, table

    facts = [(key, value) for key, value in found.facts().items()]
    console = stdout_console()
    console.print(table("check", ("", "value"), facts))
    if found.rejects:
        rows = [(r.id or "–", f"{r.source}:{r.line}", r.reason) for r in found.rejects[:20]]
        title = f"records that cannot be used: {len(found.rejects):,}"
        console.print(table(title, ("id", "place", "reason"), rows))
