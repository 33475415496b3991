"""Training data out of stores: what the FASTA files they were made of give, and no copy."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prepared_data import AMINO_ACIDS, Folder, error_of, peptides
from traced_memory import most_memory

from seqtrain.data.check import tokenizer_for
from seqtrain.data.prepare import PreparedData, prepare_data
from seqtrain.data.store import write_store
from seqtrain.data.tokenized import tokenize_fasta
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.errors import ConfigError, DataError, FastaError, LabelError


def store_of(path: str, **policies: str) -> str:
    """The store of one FASTA file."""

    def make(letters: Any) -> Tokenizer:
        return Tokenizer(tokenizer_for(letters).alphabet, **policies)

    data, tokenizer = tokenize_fasta([path], make)
    write_store(f"{path}.arrow", data, tokenizer)
    return f"{path}.arrow"


def stores_of(settings: dict[str, Any], **policies: str) -> dict[str, Any]:
    """The settings with every FASTA file replaced by its store."""
    parts = {part: settings[part] for part in ("train", "valid", "test") if part in settings}
    make = partial(store_of, **policies)
    return {**settings, **{part: list(map(make, paths)) for part, paths in parts.items()}}


def assert_same(ours: PreparedData, theirs: PreparedData) -> None:
    for part in ("train", "valid", "test"):
        own, other = getattr(ours, part), getattr(theirs, part)
        assert (own is None) == (other is None)
        if own is not None:
            assert own.fingerprint() == other.fingerprint()
            assert list(own.ids) == list(other.ids)
    assert (ours.codec, ours.tokenizer) == (theirs.codec, theirs.tokenizer)
    assert list(ours.splits()) == list(theirs.splits())
    differing = {key for key in theirs.report if ours.report[key] != theirs.report[key]}
    assert differing <= {"files", "alphabet", "rejects"}
    assert [r["id"] for r in ours.report["rejects"]] == [r["id"] for r in theirs.report["rejects"]]


def gapped(count: int, seed: int = 0) -> dict[str, str]:
    """Records with gaps, stops and ambiguity codes."""
    rng = random.Random(seed)
    return {
        f"g{seed}_{n}": "M" + "".join(rng.choices(AMINO_ACIDS + "X-*", k=rng.randint(3, 30)))
        for n in range(count)
    }


def classes(folder: Folder) -> dict[str, Any]:
    records = gapped(40)
    labels = folder.table({key: "abc"[n % 3] for n, key in enumerate(records)})
    return {"train": [folder.fasta("a.fa", records)], "labels": [labels], "test_fraction": 0.2}


def numbers_by_file(folder: Folder) -> dict[str, Any]:
    parts = {part: gapped(15, n) for n, part in enumerate(("train", "valid", "test"))}
    rows = {key: n / 3 for records in parts.values() for n, key in enumerate(records)}
    files = {part: [folder.fasta(f"{part}.fa", records)] for part, records in parts.items()}
    return {**files, "labels": [folder.table(rows)]}


def residues(folder: Folder) -> dict[str, Any]:
    """Labels of all letters for some records, and without the dropped ones for others."""
    rng = random.Random(1)
    records, labels = gapped(40), {}
    for n, (key, sequence) in enumerate(records.items()):
        letters = sequence if n % 2 else sequence.replace("-", "").replace("*", "")
        labels[key] = "".join(rng.choices("HEC", k=len(letters)))
    return {
        "train": [folder.fasta("a.fa", records)],
        "labels": [folder.fasta("labels.fa", labels)],
    }


def headers(folder: Folder) -> dict[str, Any]:
    lines = (
        f">{key} label={'ab'[n % 2]} split={('train', 'valid', 'test')[n % 3]}\n{sequence}\n"
        for n, (key, sequence) in enumerate(gapped(30).items())
    )
    return {"train": [folder.write("a.fa", "".join(lines))]}


def several_files(folder: Folder) -> dict[str, Any]:
    parts = [gapped(15, n) for n in range(3)]
    rows = {key: "ab"[n % 2] for records in parts for n, key in enumerate(records)}
    files = [folder.fasta(f"{n}.fa", records) for n, records in enumerate(parts)]
    return {"train": files, "labels": [folder.table(rows)], "split_method": "similarity"}


def letters(folder: Folder) -> dict[str, Any]:
    return {"train": [folder.fasta("a.fa", gapped(40))], "task": "mlm"}


def one_long_file(folder: Folder) -> dict[str, Any]:
    """With a limit of 25 nothing of it is left."""
    long = {f"long{n}": "MKVLAEFW" * 5 for n in range(3)}
    return {"train": [folder.fasta("a.fa", gapped(40)), folder.fasta("b.fa", long)], "task": "mlm"}


@pytest.mark.parametrize(
    "make", [classes, numbers_by_file, residues, headers, several_files, letters, one_long_file]
)
@pytest.mark.parametrize(
    "limits",
    [{}, {"max_length": 20, "overlong": "truncate"}, {"max_length": 25, "overlong": "skip"}],
)
def test_stores_give_what_their_files_give(
    folder: Folder, make: Callable[[Folder], dict[str, Any]], limits: dict[str, Any]
) -> None:
    settings = {**make(folder), **limits}
    from_files, from_stores = prepare_data(**settings), prepare_data(**stores_of(settings))
    assert_same(from_stores, from_files)


def test_policies_are_those_of_the_store(folder: Folder) -> None:
    settings, policies = classes(folder), {"gap": "unknown", "ambiguous": "keep"}
    assert_same(
        prepare_data(**stores_of(settings, **policies), **policies),
        prepare_data(**settings, **policies),
    )
    message = error_of(ConfigError, **stores_of(settings, **policies))
    assert message.startswith("tokenizer.ambiguous=unknown: ")
    assert "a.fa.arrow was tokenized with keep. Set tokenizer.ambiguous=keep, or" in message


def test_another_alphabet_than_the_stores_is_refused(folder: Folder) -> None:
    message = error_of(ConfigError, **stores_of(classes(folder)), alphabet="dna")
    assert "tokenizer.alphabet=dna" in message
    assert "was tokenized with protein" in message


def test_stores_of_different_alphabets_are_refused(folder: Folder) -> None:
    protein = store_of(folder.fasta("a.fa", peptides(9)))
    dna = store_of(folder.fasta("b.fa", {"x": "ACGT" * 20}))
    message = error_of(DataError, train=[protein], test=[dna], task="mlm")
    assert message == (
        f"{dna}: was tokenized with --alphabet dna, {protein} with protein. "
        "Make both with the same."
    )


def test_a_store_and_a_fasta_file_do_not_mix(folder: Folder) -> None:
    fasta = folder.fasta("a.fa", peptides(9))
    other = folder.fasta("b.fa", peptides(9, "q"))
    message = error_of(DataError, train=[store_of(fasta)], valid=[other], task="mlm")
    assert message.startswith(f"{other}: expected a store as {fasta}.arrow is")


def test_an_id_in_two_stores_is_told_with_both(folder: Folder) -> None:
    first = store_of(folder.fasta("a.fa", {"p": "MK", "q": "MKV"}))
    second = store_of(folder.fasta("b.fa", {"r": "MK", "q": "MKVL"}))
    message = error_of(FastaError, train=[first], valid=[second], task="mlm")
    assert message == (f"{second}: record 'q' (2nd): the id is in {first} too; ids must be unique.")


def test_an_id_is_told_though_its_record_is_left_out(folder: Folder) -> None:
    first = store_of(folder.fasta("a.fa", {"p": "MK", "q": "MKV"}))
    second = store_of(folder.fasta("b.fa", {"r": "MK", "q": "MKVL" * 9}))
    limits = {"max_length": 9, "overlong": "skip"}
    message = error_of(FastaError, train=[first], valid=[second], task="mlm", **limits)
    assert "the id is in" in message


def test_bad_records_of_all_stores_come_in_one_message(folder: Folder) -> None:
    stores = [
        store_of(folder.write(f"{n}.fa", f">a{n} label=x\nMK\n>b{n} label=y\nMKVLA\n"))
        for n in "01"
    ]
    message = error_of(FastaError, train=stores[:1], valid=stores[1:], max_length=3)
    assert "record 'b0' (2nd)" in message
    assert "record 'b1' (2nd)" in message
    labels = folder.fasta("labels.fa", {"a0": "H", "b0": "HHHHH", "a1": "EE", "b1": "E"})
    message = error_of(LabelError, train=stores, labels=[labels], valid_fraction=0.5)
    assert "record 'a0' (1st): label on line 1 of" in message
    assert "record 'b1' (2nd): label on line 7 of" in message


def test_a_missing_store_is_told_as_a_missing_file_is(folder: Folder) -> None:
    store = store_of(folder.fasta("a.fa", peptides(9)))
    message = error_of(FastaError, train=[store], valid=[store.replace("a.fa", "b.fa")], task="mlm")
    assert "b.fa.arrow: no such file. Did you mean" in message
    message = error_of(FastaError, train=[store], valid=[str(folder.path)], task="mlm")
    assert "is a folder, expected a file" in message


def test_messages_about_records_of_a_store_name_no_line(folder: Folder) -> None:
    path = folder.write("a.fa", ">a label=1.5\nMK\n>b label=x\nMK\n>c label=2.5\nMK\n")
    message = error_of(LabelError, train=[store_of(path)], task="regression")
    assert message == (
        f"{path}.arrow: record 'b' (2nd): label in {path}.arrow: expected a number such "
        "as 1234.5, found 'x'."
    )
    message = error_of(FastaError, train=[store_of(path)], task="mlm", max_length=1)
    assert message.startswith(f"{path}.arrow: 3 records cannot be used:\n  record 'a' (1st): 2 res")


def test_a_store_that_is_one_whole_part_is_not_copied(folder: Folder) -> None:
    settings = stores_of(numbers_by_file(folder))
    data = prepare_data(**settings)
    for part in (data.train, data.valid, data.test):
        assert part is not None
        assert not part.tokens.flags.owndata
        assert not part.tokens.flags.writeable, "it is the file"
        assert isinstance(part.targets, np.ndarray)


def test_memory_does_not_grow_with_residues(tmp_path: Path) -> None:
    """Neither while a store is made nor when it is taken for training; with FASTA files it does."""
    used = {}
    for length in (100, 20_000):
        lines = (
            f">{length}_{n} label={'ab'[n % 2]}\n{'MKVLAEFW' * (length // 8)}\n" for n in range(400)
        )
        path = tmp_path / f"{length}.fasta"
        path.write_text("".join(lines))
        valid = tmp_path / f"valid{length}.fasta"
        valid.write_text(">x label=a\nMKV\n>y label=b\nMKVL\n")
        stores = {"train": [store_of(str(path))], "valid": [store_of(str(valid))]}
        files = {"train": [str(path)], "valid": [str(valid)]}
        used[length] = [
            most_memory(partial(tokenize_fasta, [str(path)], tokenizer_for, folder=tmp_path)),
            most_memory(partial(prepare_data, **stores)),
            most_memory(partial(prepare_data, **files)),
        ]
    residues = 400 * 20_000
    grown = np.subtract(used[20_000], used[100]) / residues
    assert (grown[:2] < 0.2).all(), "a residue is a byte in a file, and a record is read whole"
    assert grown[2] > 1, "the measure would see a byte a residue"
