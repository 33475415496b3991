"""`seqtrain data`: check, tokenize, split and audit files before anything is trained."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqtrain.cli import options
from seqtrain.cli.check import check
from seqtrain.errors import ConfigError
from seqtrain.escaping import print
from seqtrain.words import counted

if TYPE_CHECKING:
    from seqtrain.data.audit import LeakSearch
    from seqtrain.data.prepare import PreparedData

app = typer.Typer(help="Check, tokenize, split and audit your files.", no_args_is_help=True)

CLOSEST = 5
"""Pairs of similar records that an audit shows."""

app.command("check")(check)


@app.command()
def tokenize(
    fasta: options.Fasta,
    output: Annotated[Path, typer.Option("--output", "-o", help="The store, an Arrow file.")],
    alphabet: options.Alphabet = None,
    ambiguous: Annotated[
        str,
        typer.Option(help="tokenizer.ambiguous: unknown, keep or error."),
    ] = "unknown",
    gap: Annotated[str, typer.Option(help="tokenizer.gap: drop, unknown or error.")] = "drop",
    stop: Annotated[str, typer.Option(help="tokenizer.stop: drop, unknown or error.")] = "drop",
    other: Annotated[
        str,
        typer.Option(help="tokenizer.other: letters outside the alphabet are an error or unknown."),
    ] = "error",
    overwrite: options.Overwrite = False,
) -> None:
    """Write the token ids of all records as one Arrow file, to train on without reading them again.

    `seqtrain train`, `compare-norms` and `data audit` take it in place of the FASTA files. A store
    that is one part alone (--train, --valid or --test) is mapped into memory, which then does not
    grow with the sequences. Temporary files of its size lie beside it while it is made.
    """
    from seqtrain.data.check import tokenizer_for
    from seqtrain.data.outputs import Output, check_outputs
    from seqtrain.data.own_files import is_own_store
    from seqtrain.data.store import write_store
    from seqtrain.data.tokenized import tokenize_fasta

    check_outputs([Output("--output", output, is_own_store)], fasta, overwrite=overwrite)
    policies = {"ambiguous": ambiguous, "gap": gap, "stop": stop, "other": other}
    tokenizer_for({}, alphabet, **policies)  # refuses what is none before anything is read
    data, tokenizer = tokenize_fasta(
        fasta,
        lambda letters: tokenizer_for(letters, alphabet, **policies),
        folder=output.resolve().parent,
        policy_form="give --{} unknown",
    )
    write_store(output, data, tokenizer)
    records, residues = len(data), len(data.sequences.tokens)
    print(
        f"{counted(records, 'record')}, {counted(residues, 'residue')} written to {output}",
        file=sys.stderr,
    )


@app.command()
def split(
    fasta: options.Fasta,
    output: Annotated[Path, typer.Option("--output", "-o", help="A TSV with columns id, split.")],
    labels: options.LabelFiles = None,
    label_column: options.LabelColumn = None,
    id_column: options.IdColumn = None,
    task: options.Task = None,
    decimal: options.Decimal = None,
    on_error: options.OnMissing = None,
    method: Annotated[
        str, typer.Option(help="random, stratified (by label) or similarity (families stay whole).")
    ] = "stratified",
    valid_fraction: Annotated[float, typer.Option(min=0, max=1)] = 0.1,
    test_fraction: Annotated[float, typer.Option(min=0, max=1)] = 0.1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    overwrite: options.Overwrite = False,
) -> None:
    """Divide records into train, valid and test, and write who is where.

    Labels are read as in training. Train with the file by `seqtrain train ... --splits FILE`: it
    goes with labels of every kind, and with task=mlm. FASTA files or stores of `data tokenize`.
    """
    from collections import Counter

    from seqtrain.data.dividing import METHODS, split_files
    from seqtrain.data.outputs import Output, check_outputs, write_report
    from seqtrain.data.own_files import is_split_table

    if method not in METHODS:
        raise typer.BadParameter("--method takes random, stratified or similarity.")
    if valid_fraction + test_fraction >= 1:
        raise ConfigError("--valid-fraction and --test-fraction leave nothing to train on.")
    check_outputs(
        [Output("--output", output, is_split_table, streams=True)],
        [*fasta, *(labels or [])],
        overwrite=overwrite,
    )
    with options.named_as_options():
        divided = split_files(
            fasta,
            labels or (),
            label_column=label_column,
            id_column=id_column,
            task=task,
            decimal=decimal,
            on_error=on_error or "fail",
            method=method,
            fractions=(1 - valid_fraction - test_fraction, valid_fraction, test_fraction),
            seed=seed,
        )
    lines = "".join(f"{name}\t{part}\n" for name, part in divided.rows)
    write_report(output, "id\tsplit\n" + lines)
    counts = Counter(part for _, part in divided.rows)
    said = ", ".join(f"{counts[part]:,} {part}" for part in ("train", "valid", "test"))
    for warning in divided.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{said}, written to {output}", file=sys.stderr)
    for part, share in (("valid", valid_fraction), ("test", test_fraction)):
        if method == "similarity" and abs(counts[part] / len(divided.rows) - share) > share / 2:
            print(
                f"warning: {part} holds {counts[part] / len(divided.rows):.1%} of the records "
                f"instead of {share:.1%}, as families stay whole",
                file=sys.stderr,
            )
    if output.is_file():
        named = {
            "--train": fasta,
            "--labels": divided.labels,
            "--label-column": label_column,
            "--id-column": id_column,
            "--on-error": on_error,
            "--splits": str(output),
            "--split-column": "" if divided.has_splits else None,
        }
        without_labels = None if divided.has_labels else "mlm"
        settings = {"task": task or without_labels, "data.decimal": decimal}
        print(f"train with: {_training(named, settings)}", file=sys.stderr)


def _training(named: "dict[str, list[str] | str | None]", settings: "dict[str, str | None]") -> str:
    """The command that trains with these options and settings."""
    words = ["seqtrain", "train"]
    for option, value in named.items():
        for text in [value] if isinstance(value, str) else value or []:
            words += [option, text]
    return shlex.join([*words, *(f"{key}={text}" for key, text in settings.items() if text)])


@app.command()
def audit(
    fasta: options.Fasta,
    labels: options.LabelFiles = None,
    test: options.TestFiles = None,
    splits: options.SplitFiles = None,
    label_column: options.LabelColumn = None,
    id_column: options.IdColumn = None,
    task: options.Task = None,
    decimal: options.Decimal = None,
    on_error: options.OnMissing = None,
    split_column: options.SplitColumn = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the report as JSON.")] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Ask what length and composition alone predict, and what leaks between the parts.

    Without --test, --splits and a split column the test part is made: stratified, seed 0.
    """
    from seqtrain.data.audit import alarms, baselines, find_duplicates, search_leaks
    from seqtrain.data.outputs import Output, check_outputs, write_report
    from seqtrain.data.own_files import is_report
    from seqtrain.data.prepare import prepare_data
    from seqtrain.reporting import to_json

    check_outputs(
        [Output("--json", json, is_report("baselines", "duplicates", "leaks"), streams=True)],
        [*fasta, *(test or []), *(labels or []), *(splits or [])],
        overwrite=overwrite,
    )
    with options.named_as_options():
        data = prepare_data(
            train=fasta,
            test=test or (),
            labels=labels or (),
            splits=splits or (),
            label_column=label_column,
            id_column=id_column,
            split_column=split_column,
            task=task,
            decimal=decimal,
            on_error=on_error or "fail",
            test_fraction=0.2,
            settable=False,
        )
    for warning in data.report["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    assert data.test is not None, "a fraction is set aside when nothing else makes a test part"
    parts = {"train": data.train, "valid": data.valid, "test": data.test}
    scores = baselines(data.train, data.test, data.codec.task)
    leaks = search_leaks(parts)
    report = {
        "task": data.codec.task,
        "warnings": data.report["warnings"],
        "baselines": scores,
        "alarms": alarms(scores, data.codec.task),
        "duplicates": find_duplicates(parts)._asdict(),
        "leaks": [leak._asdict() for leak in leaks.leaks],
        "similarity": {
            **{key: value for key, value in leaks._asdict().items() if key != "leaks"},
            "records": {name: leaks.number(name) for name in list(parts)[1:]},
        },
    }
    if json is not None:
        write_report(json, to_json(report, indent=1) + "\n")
    _print_audit(report, data, leaks)


def _print_audit(report: dict[str, Any], data: "PreparedData", leaks: "LeakSearch") -> None:
    from seqtrain.data.audit import Leak
    from seqtrain.reporting import stdout_console, table

    console = stdout_console()
    metrics = list(
        dict.fromkeys(name for scores in report["baselines"].values() for name in scores)
    )
    rows = [
        (name.replace("_", " "), *(scores.get(metric, float("nan")) for metric in metrics))
        for name, scores in report["baselines"].items()
    ]
    console.print(
        table(
            "what can be predicted without reading order (test part)", ("baseline", *metrics), rows
        )
    )
    duplicates = report["duplicates"]
    facts: list[tuple[str, Any]]
    facts = [(f"exact duplicates within {k}", len(v)) for k, v in duplicates["within"].items()]
    facts += [(f"exact duplicates in {k}", len(v)) for k, v in duplicates["between"].items()]
    facts += [("equal sequences with different labels", len(duplicates["conflicting"]))]
    sizes = {"valid": len(data.valid), "test": len(data.test) if data.test is not None else 0}
    for part, size in sizes.items():
        facts.append(
            (f"of {size:,} {part} records, similar to one in an earlier part", leaks.counted(part))
        )
    console.print(table("leaks", ("", "records"), facts))
    console.print(leaks.rule, markup=False)
    for limit in leaks.limits:
        console.print(f"There may be more: {limit}.", markup=False)
    if leaks.leaks:
        console.print(table("closest pairs", Leak._fields, leaks.leaks[:CLOSEST]))
    for alarm in report["alarms"]:
        console.print(f"ALARM: {alarm}", markup=False)
