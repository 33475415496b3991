"""`seqtrain embed`: the encoder's vectors for FASTA records."""

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seqtrain.cli import options
from seqtrain.cli.progress import Progress
from seqtrain.cli.startup import load_torch
from seqtrain.escaping import print
from seqtrain.words import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from seqtrain.evaluation.embed import Embedding


def embed(
    run: options.RunPath,
    fasta: options.Fasta,
    output: Annotated[Path, typer.Option("--output", "-o", help="A .npz or .parquet file.")],
    per_residue: Annotated[
        bool, typer.Option("--per-residue", help="A vector for each residue, not each record.")
    ] = False,
    pooling: Annotated[str, typer.Option(help="mean or max over the residues.")] = "mean",
    layer: Annotated[
        int, typer.Option(help="0: the embedding; i: the i-th block; -1: what the head sees.")
    ] = -1,
    dtype: Annotated[str, typer.Option(help="float32 or float16, of what is written.")] = "float32",
    window: options.Window = None,
    overlap: options.Overlap = None,
    overlong: options.Overlong = None,
    on_error: options.OnError = "fail",
    overwrite: options.Overwrite = False,
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Write a vector for every record, or residue; rows keep the order of the input."""
    options.check_on_error(on_error)
    load_torch()
    from seqtrain.data.fasta import scan_fasta
    from seqtrain.data.outputs import Output, check_outputs
    from seqtrain.data.own_files import is_embedding_file
    from seqtrain.evaluation.applicability import TrainingRange
    from seqtrain.evaluation.embed import (
        DTYPES,
        check_embedding_format,
        embed_records,
        write_embeddings,
    )
    from seqtrain.evaluation.predict import length_rule
    from seqtrain.evaluation.windows import Windows
    from seqtrain.export.bundle import open_run
    from seqtrain.training.device import choose_device

    check_embedding_format(output)
    written = [Output("--output", output, is_embedding_file)]
    check_outputs(written, [run, *fasta], overwrite=overwrite)
    if dtype not in DTYPES:
        raise typer.BadParameter(f"--dtype takes {' or '.join(DTYPES)}.")
    windows = Windows.of(window, overlap)
    loaded = open_run(run)
    lengths = length_rule(loaded, overlong, windows, choose_device(device))
    budget = batch_size or loaded.config.batching.max_tokens
    assert budget is not None
    progress = Progress(fasta, quiet)
    known = TrainingRange.from_report(loaded.data)
    embeddings = embed_records(
        loaded.model.to(choose_device(device)),
        loaded.tokenizer,
        progress.watch(scan_fasta(fasta)),
        max_tokens=budget,
        per_residue=per_residue,
        pooling=pooling,
        layer=layer,
        dtype=dtype,
        on_error=on_error,
        windows=windows,
        lengths=lengths,
        trained_on=known,
    )
    counts: Counter[str] = Counter()
    told = _tally(progress.count(embeddings), counts)
    number = write_embeddings(output, told, per_residue=per_residue, dtype=dtype)
    if not quiet:
        options.say_left_out(lengths, counts, number, number - counts["ok"], "have no vector")
        alphabet = loaded.tokenizer.alphabet.name
        for sentence in known.sentences(counts, counts["ok"], alphabet) if known else ():
            print(f"warning: {sentence}", file=sys.stderr)
        print(f"{counted(number, 'record')} written to {output}", file=sys.stderr)


def _tally(embeddings: "Iterable[Embedding]", counts: Counter[str]) -> "Iterator[Embedding]":
    for embedding in embeddings:
        counts.update(embedding.warnings)
        counts["ok"] += embedding.status == "ok"
        yield embedding
