"""An account of the data of a run, as it is kept in ``data.json``."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from seqtrain.data.corruption import count_letters
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.fasta import Reject
from seqtrain.data.files import file_facts
from seqtrain.data.join import label_source
from seqtrain.data.label_column import column_words
from seqtrain.data.label_table import LabelTable
from seqtrain.data.labels import LabelCodec, is_regression
from seqtrain.data.lookalikes import class_warnings
from seqtrain.data.tokenized import Tokenized, ids_of, letters_of, looks_like
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.data.uniform import uniform_warning
from seqtrain.words import counted


def data_report(
    files: Mapping[str, Sequence[str]],
    warnings: Sequence[str],
    pieces: Sequence[Tokenized],
    table: LabelTable,
    tokenizer: Tokenizer,
    codec: LabelCodec,
    parts: Mapping[str, SequenceDataset],
    how: Mapping[str, str],
    unlabelled: Sequence[Reject] = (),
) -> dict[str, Any]:
    """What was read, decided and left out, ready for JSON.

    Args:
        files: Paths by part, and those of ``labels`` and ``splits``.
        warnings: Those of the labels and the splits.
        pieces: All records that are used, and those left out.
        table: All labels that were read.
        tokenizer: How letters were read.
        codec: What labels mean.
        parts: The datasets by part; empty ones are left out of the report.
        how: How alphabet, task and split were found.
        unlabelled: Records that were left out for want of a label.

    Returns:
        ``files`` with size and SHA-256; ``alphabet``, ``task`` and ``split`` with how they were
        found; ``parts`` with counts; ``policies``, how many letters were read under which one, in
        over-long records that were left out too; ``rejects``, these and those without a label;
        ``fingerprints`` of the parts; ``warnings``.
    """
    skipped = [reject for piece in pieces for reject in piece.skipped]
    left_out = [*skipped, *unlabelled]
    truncated = [record for piece in pieces for record in piece.truncated]
    used = sum(record in table.values for record in ids_of(pieces))
    unused = len(table.values) - used - sum(reject.id in table.values for reject in left_out)
    letters = letters_of(pieces)
    policies = tokenizer.count_policies(letters)
    parts = {name: part for name, part in parts.items() if len(part)}
    return {
        "files": {name: [file_facts(p) for p in paths] for name, paths in files.items() if paths},
        "alphabet": {"name": tokenizer.alphabet.name, "how": how["alphabet"]},
        "task": {"name": codec.task, "how": how["task"]},
        "label_source": label_source(table),
        "label_columns": column_words(table) if table.values else [],
        "split": {"how": how["split"]},
        "parts": {name: _part_report(part, codec) for name, part in parts.items()},
        "policies": policies,
        "labels_without_record": unused,
        "rejects": [reject._asdict() for reject in left_out],
        "truncated": truncated,
        "fingerprints": {name: part.fingerprint() for name, part in parts.items()},
        "warnings": [
            *table.notes,
            *_label_warnings(table, codec, unused),
            *warnings,
            *(
                warning
                for name in ("valid", "test")
                if name in parts
                for warning in uniform_warning(name, parts[name], codec)
            ),
            *_length_warnings(len(skipped), len(truncated)),
            *_letter_warnings(tokenizer, letters, policies),
        ],
    }


def _part_report(part: SequenceDataset, codec: LabelCodec) -> dict[str, Any]:
    lengths = part.lengths
    quantiles = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}
    return {
        "records": len(part),
        "residues": int(lengths.sum()),
        "lengths": {name: float(np.quantile(lengths, q)) for name, q in quantiles.items()},
        **_label_report(part, codec),
    }


def _label_report(part: SequenceDataset, codec: LabelCodec) -> dict[str, Any]:
    targets = part.targets
    if targets is None:
        letters = count_letters(part, len(codec.classes)).tolist()
        return {"classes": dict(zip(codec.classes, letters, strict=True))}
    if is_regression(codec.task):
        missing = np.isnan(targets)
        absent = {"missing_residues": int(missing.sum())} if part.per_residue else {}
        targets = targets[~missing]
        spread = {"mean": targets.mean(), "std": targets.std(), "min": targets.min()}
        spread |= {"max": targets.max()}
        return {"targets": {name: float(value) for name, value in spread.items()}, **absent}
    if codec.task == "multilabel":
        counts = targets.sum(axis=0)
    else:
        counts = np.bincount(targets[targets >= 0], minlength=len(codec.classes))
    named = {name: int(count) for name, count in zip(codec.classes, counts, strict=True)}
    ignored = {"ignored_residues": int((targets < 0).sum())} if part.per_residue else {}
    return {"classes": named, **ignored}


def _label_warnings(table: LabelTable, codec: LabelCodec, unused: int) -> list[str]:
    warnings = []
    if unused:
        source = label_source(table)
        one = f"label of {source} has no record and is not used"
        many = f"labels of {source} have no record and are not used"
        warnings.append(counted(unused, one, many))
    if codec.task != "mlm":
        found = class_warnings(codec, table.values.values())
        warnings += [f"{label_source(table)}: {text}" for text in found]
    for label in codec.ignore:
        if table.values and not any(label in value for value in table.values.values()):
            warnings.append(f"data.ignore_labels: {label!r} occurs in no label")
    return warnings


def _length_warnings(skipped: int, truncated: int) -> list[str]:
    warnings = []
    if skipped:
        one, many = "over-long record is left out", "over-long records are left out"
        warnings.append(f"{counted(skipped, one, many)} (data.overlong=skip)")
    if truncated:
        one, many = "over-long record lost its end", "over-long records lost their end"
        warnings.append(counted(truncated, one, many))
    return warnings


def _letter_warnings(
    tokenizer: Tokenizer, letters: Mapping[str, int], policies: Mapping[str, int]
) -> list[str]:
    """Of an alphabet that may be wrong, and of each kind of letter that was not taken as it is."""
    warnings = []
    looks = looks_like(letters)
    if tokenizer.alphabet.name == "protein" != looks:
        warnings.append(f"the sequences look like {looks}, but are read as protein")
    alphabet = tokenizer.alphabet
    rare = alphabet.name == "protein"
    code = "ambiguity code" + " or rare residue" * rare
    codes = "ambiguity codes" + " or rare residues" * rare
    synonyms = " and ".join(f"{old} read as {new}" for old, new in alphabet.synonyms.items())
    becomes = {"drop": "dropped", "unknown": f"read as {alphabet.unknown}"}
    kinds = {
        "gap": ("gap", "gaps", becomes.get(tokenizer.gap)),
        "stop": ("stop", "stops", becomes.get(tokenizer.stop)),
        "ambiguous": (code, codes, becomes.get(tokenizer.ambiguous)),
        "synonym": ("letter:", "letters:", synonyms),
        "other": (
            "letter outside the alphabet",
            "letters outside the alphabet",
            becomes.get(tokenizer.other),
        ),
    }
    return warnings + [
        f"{counted(policies[policy], one, many)} {reading}"
        for policy, (one, many, reading) in kinds.items()
        if policies[policy] and reading
    ]
