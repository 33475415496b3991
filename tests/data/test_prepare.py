import json
import random
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqtrain.data.labels import IGNORE
from seqtrain.data.prepare import PreparedData, prepare_data, read_for_model
from seqtrain.errors import ConfigError, DataError, FastaError, LabelError, SeqtrainError

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"


class Folder:
    """Writes small files and prepares them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, content: str) -> str:
        (self.path / name).write_text(content)
        return str(self.path / name)

    def fasta(self, name: str, records: dict[str, str]) -> str:
        return self.write(name, "".join(f">{key}\n{seq}\n" for key, seq in records.items()))

    def table(self, rows: dict[str, object], header: str = "id\tlabel") -> str:
        lines = [header, *("\t".join([key, *_cells(value)]) for key, value in rows.items())]
        return self.write("labels.tsv", "\n".join(lines) + "\n")


def _cells(value: object) -> list[str]:
    return [str(cell) for cell in value] if isinstance(value, tuple) else [str(value)]


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


def peptides(count: int, prefix: str = "p", seed: int = 0) -> dict[str, str]:
    rng = random.Random(f"{prefix}{seed}")
    return {
        f"{prefix}{n}": "".join(rng.choices(AMINO_ACIDS, k=rng.randint(5, 30)))
        for n in range(count)
    }


def error_of(kind: type[SeqtrainError], **settings) -> str:
    with pytest.raises(kind) as caught:
        prepare_data(**settings)
    return str(caught.value)


def parts_of(data: PreparedData) -> dict[str, list[str]]:
    parts = {"train": data.train, "valid": data.valid, "test": data.test}
    return {name: list(part.ids) for name, part in parts.items() if part is not None}


# What comes out.


def test_records_come_out_with_their_tokens_and_targets_in_input_order(folder):
    train = peptides(20)
    test = peptides(5, "t")
    labels = {key: "ab"[n % 2] for n, key in enumerate([*train, *test])}
    data = prepare_data(
        train=[folder.fasta("train.fa", train)],
        test=[folder.fasta("test.fa", test)],
        labels=[folder.table(dict(reversed(labels.items())))],
    )
    assert parts_of(data)["test"] == list(test)
    assert [key for key in train if data.splits[key] == "train"] == parts_of(data)["train"]
    assert list(data.splits) == [*train, *test]
    for part in (data.train, data.valid, data.test):
        for i, key in enumerate(part.ids):
            assert data.tokenizer.decode(part.residues(i)) == {**train, **test}[key]
            assert data.codec.decode(part.target(i)) == labels[key]


def test_labels_in_headers_are_enough(folder):
    text = "".join(
        f">{key} label={'xy'[n % 2]} split={'test' if n < 4 else 'train'}\n{seq}\n"
        for n, (key, seq) in enumerate(peptides(24).items())
    )
    data = prepare_data(train=[folder.write("train.fa", text)])
    assert parts_of(data)["test"] == ["p0", "p1", "p2", "p3"]
    assert data.codec.classes == ("x", "y")
    assert data.report["split"]["how"].startswith("by the headers (split=...); of train 0.1 for")
    assert data.report["label_source"] == "the headers (label=...)"


def test_regression_is_scaled_by_training_targets_alone(folder):
    train, test = peptides(40), peptides(5, "t")
    labels = {key: n / 4 for n, key in enumerate(train)} | dict.fromkeys(test, 1e6)
    data = prepare_data(
        train=[folder.fasta("train.fa", train)],
        test=[folder.fasta("test.fa", test)],
        labels=[folder.table(labels, "id\ttarget")],
    )
    used = [labels[key] for key in data.train.ids]
    assert data.codec.task == "regression"
    assert data.train.targets.dtype == np.float32
    assert data.train.targets.tolist() == used
    assert data.codec.mean == pytest.approx(statistics.fmean(used))
    assert data.codec.std == pytest.approx(statistics.pstdev(used))
    assert data.test.targets.tolist() == [1e6] * 5


def test_zero_and_one_are_classes(folder):
    records = peptides(20)
    labels = folder.table({key: n % 2 for n, key in enumerate(records)})
    data = prepare_data(train=[folder.fasta("a.fa", records)], labels=[labels])
    assert data.codec.task == "classification"
    assert data.codec.classes == ("0", "1")
    asked = prepare_data(train=[folder.fasta("a.fa", records)], labels=[labels], task="regression")
    assert asked.codec.task == "regression"


def test_multilabel_targets_are_rows_of_zeros_and_ones(folder):
    records = peptides(30)
    names = ["a", "b", "a;c"]
    labels = folder.table({key: names[n % 3] for n, key in enumerate(records)})
    data = prepare_data(train=[folder.fasta("a.fa", records)], labels=[labels])
    assert data.codec.classes == ("a", "b", "c")
    assert data.train.targets.shape == (len(data.train), 3)
    assert data.report["parts"]["train"]["classes"]["c"] == int(data.train.targets[:, 2].sum())


def residue_set(folder: Folder, sequences: dict[str, str], labels: dict[str, str], **settings):
    filler = {f"f{n}": "MKVLA" for n in range(12)}
    return prepare_data(
        train=[folder.fasta("train.fa", filler)],
        test=[folder.fasta("test.fa", sequences)],
        labels=[folder.fasta("labels.fa", {**dict.fromkeys(filler, "HHNNU"), **labels})],
        ignore_labels=["U"],
        **settings,
    )


def test_residue_labels_follow_their_residues_through_dropped_letters(folder):
    data = residue_set(
        folder,
        {"plain": "MKVLA", "gapped": "MK-V.L*", "short": "MK-VL*"},
        {"plain": "HNUHN", "gapped": "HNUUHNU", "short": "HNNH"},
    )
    h, n = data.codec.classes.index("H"), data.codec.classes.index("N")
    assert data.codec.classes == ("H", "N")
    assert data.test.per_residue
    assert data.test.target(0).tolist() == [h, n, IGNORE, h, n]
    assert data.test.target(1).tolist() == [h, n, IGNORE, n]
    assert data.test.target(2).tolist() == [h, n, n, h]
    assert data.report["parts"]["test"]["ignored_residues"] == 2


def test_residue_labels_are_truncated_with_their_sequence(folder):
    data = residue_set(
        folder, {"long": "M-KVLAMKV"}, {"long": "HUNNNNNNN"}, max_length=5, overlong="truncate"
    )
    assert data.tokenizer.decode(data.test.residues(0)) == "MKVLA"
    assert data.codec.decode(data.test.target(0)) == "HNNNN"
    assert data.report["truncated"] == ["long"]
    assert "1 over-long records lost their end" in data.report["warnings"]


def test_report_is_json_and_tells_files_counts_and_choices(folder):
    records = peptides(20) | {"odd": "MK-BX*U", "other": "MKKK"}
    labels = {key: "ab"[n % 2] for n, key in enumerate(records)}
    fasta, table = folder.fasta("a.fa", records), folder.table(labels | {"gone": "a", "z": "b"})
    report = json.loads(json.dumps(prepare_data(train=[fasta], labels=[table]).report))
    assert report["files"]["train"][0]["path"] == fasta
    assert report["files"]["labels"][0]["bytes"] == Path(table).stat().st_size
    assert report["alphabet"] == {"name": "protein", "how": "told from the letters"}
    assert report["task"] == {"name": "classification", "how": "told from the labels"}
    assert report["policies"] == {"gap": 1, "stop": 1, "ambiguous": 3, "synonym": 0, "other": 0}
    assert report["labels_without_record"] == 2
    parts = report["parts"]
    assert parts["train"]["records"] + parts["valid"]["records"] == 22
    assert parts["train"]["classes"]["a"] + parts["valid"]["classes"]["a"] == 11
    assert parts["train"]["residues"] + parts["valid"]["residues"] == (
        sum(map(len, records.values())) - 2
    )
    assert parts["train"]["lengths"]["min"] >= 4
    assert set(report["fingerprints"]) == {"train", "valid"}
    assert report["warnings"] == [
        f"2 labels of {table}, column 'label' have no record and are not used",
        "1 gaps dropped",
        "1 stops dropped",
        "3 ambiguity codes or rare residues read as X",
    ]


def test_given_alphabet_and_task_are_kept_and_said(folder):
    records = {f"r{n}": "ACGU" * (n + 2) for n in range(12)}
    labels = folder.table({key: "ab"[n % 2] for n, key in enumerate(records)})
    settings = {"train": [folder.fasta("a.fa", records)], "labels": [labels]}
    assert prepare_data(**settings).tokenizer.alphabet.name == "rna"
    data = prepare_data(**settings, alphabet="dna", task="classification")
    assert data.tokenizer.alphabet.name == "dna"
    assert data.report["alphabet"]["how"] == data.report["task"]["how"] == "given"
    assert any("letters: U read as T" in warning for warning in data.report["warnings"])


def test_nucleotides_read_as_protein_on_request_are_warned_about(folder):
    records = {f"r{n}": "ACGT" * 5 for n in range(12)}
    labels = folder.table({key: "ab"[n % 2] for n, key in enumerate(records)})
    data = prepare_data(train=[folder.fasta("a.fa", records)], labels=[labels], alphabet="protein")
    assert "the sequences look like dna, but are read as protein" in data.report["warnings"]


def test_ignored_label_that_never_occurs_is_warned_about(folder):
    records = {f"f{n}": "MKVLA" for n in range(12)}
    data = prepare_data(
        train=[folder.fasta("train.fa", records)],
        labels=[folder.fasta("labels.fa", dict.fromkeys(records, "HHNNU"))],
        ignore_labels=["u", "U"],
    )
    assert "data.ignore_labels: 'u' occurs in no label" in data.report["warnings"]
    assert not any("'U'" in warning for warning in data.report["warnings"])


# Splits.


@given(st.integers(0, 2**31), st.sampled_from(["stratified", "random"]))
def test_made_split_is_whole_seeded_and_saved(tmp_path_factory, seed, method):
    folder = Folder(tmp_path_factory.mktemp("split"))
    records = peptides(50)
    settings = {
        "train": [folder.fasta("a.fa", records)],
        "labels": [folder.table({key: "ab"[n % 2] for n, key in enumerate(records)})],
        "valid_fraction": 0.2,
        "test_fraction": 0.1,
        "split_method": method,
        "seed": seed,
    }
    data = prepare_data(**settings)
    parts = parts_of(data)
    assert {name: len(ids) for name, ids in parts.items()} == {"train": 35, "valid": 10, "test": 5}
    assert sorted(key for ids in parts.values() for key in ids) == sorted(records)
    assert data.splits == {key: name for name, ids in parts.items() for key in ids}
    assert prepare_data(**settings).splits == data.splits


def test_stratified_split_keeps_the_shares_of_classes(folder):
    records = peptides(100)
    labels = {key: "rare" if n < 20 else "common" for n, key in enumerate(records)}
    data = prepare_data(
        train=[folder.fasta("a.fa", records)], labels=[folder.table(labels)], valid_fraction=0.2
    )
    assert data.report["parts"]["valid"]["classes"] == {"common": 16, "rare": 4}
    assert "by class, seed 0" in data.report["split"]["how"]


def test_regression_split_is_stratified_by_quantile(folder):
    records = peptides(100)
    labels = {key: n / 7 for n, key in enumerate(records)}
    data = prepare_data(
        train=[folder.fasta("a.fa", records)], labels=[folder.table(labels)], valid_fraction=0.1
    )
    assert sorted(int(t * 7 + 0.5) // 10 for t in data.valid.targets) == list(range(10))
    assert "quantile bins" in data.report["split"]["how"]


@pytest.mark.parametrize("method", ["stratified", "random"])
def test_class_is_never_taken_out_of_train_altogether(folder, method):
    records = peptides(60)
    kinds = ["a,b", "a", "b"]
    labels = {key: kinds[n % 3] for n, key in enumerate(records)}
    labels |= {f"p{n}": f"a,single{n}" for n in range(0, 60, 3)}
    for seed in range(5):
        data = prepare_data(
            train=[folder.fasta("a.fa", records)],
            labels=[folder.table(labels)],
            valid_fraction=0.3,
            split_method=method,
            seed=seed,
        )
        assert len(data.codec.classes) == 22
        assert all(data.train.targets.sum(axis=0) > 0)
        assert len(data.valid) > 0
    assert method == "stratified" or "back in train" in data.report["split"]["how"]


def test_no_more_records_come_back_to_train_than_its_classes_need(folder):
    records = peptides(40)
    labels = {key: "pair" if n < 2 else "rest" for n, key in enumerate(records)}
    settings = {"train": [folder.fasta("a.fa", records)], "labels": [folder.table(labels)]}
    told = []
    for seed in range(12):
        data = prepare_data(**settings, valid_fraction=0.5, split_method="random", seed=seed)
        if "back in train" in data.report["split"]["how"]:
            told.append(seed)
            assert "(1 back in train" in data.report["split"]["how"]
            assert data.report["parts"]["train"]["classes"]["pair"] == 1
            assert data.report["parts"]["valid"]["classes"]["pair"] == 1
    assert told


def test_similar_records_stay_together_when_asked_for(folder):
    rng = random.Random(1)
    families = ["".join(rng.choices(AMINO_ACIDS, k=60)) for _ in range(30)]
    records = {
        f"f{n}_{copy}": family[copy:] for n, family in enumerate(families) for copy in range(4)
    }
    data = prepare_data(
        train=[folder.fasta("a.fa", records)],
        labels=[folder.table({key: "ab"[n % 2] for n, key in enumerate(records)})],
        split_method="similarity",
        valid_fraction=0.2,
    )
    for n in range(30):
        assert len({data.splits[f"f{n}_{copy}"] for copy in range(4)}) == 1


def test_files_win_over_the_column_when_they_name_a_part(folder):
    train, valid, test = peptides(20), peptides(4, "v"), peptides(4, "t")
    everything = {**train, **valid, **test}
    rows = {key: ("ab"[n % 2], "holdout") for n, key in enumerate(everything)}
    data = prepare_data(
        train=[folder.fasta("train.fa", train)],
        valid=[folder.fasta("valid.fa", valid)],
        test=[folder.fasta("test.fa", test)],
        labels=[folder.table(rows, "id\tlabel\tsplit")],
    )
    assert parts_of(data) == {"train": list(train), "valid": list(valid), "test": list(test)}
    assert data.report["split"]["how"] == "by file"


def test_column_wins_when_there_are_only_training_files(folder):
    records = peptides(12)
    names = ["Training", "dev", "TEST", "train"]
    rows = {key: ("ab"[n // 4 % 2], names[n % 4]) for n, key in enumerate(records)}
    table = folder.table(rows, "id\tlabel\tset")
    data = prepare_data(train=[folder.fasta("a.fa", records)], labels=[table])
    expected = {"Training": "train", "train": "train", "dev": "valid", "TEST": "test"}
    assert data.splits == {key: expected[rows[key][1]] for key in records}
    assert data.report["split"]["how"] == f"by {table}, column 'set'"


def test_column_without_validation_has_it_taken_from_train(folder):
    records = peptides(40)
    rows = {key: ("ab"[n % 2], "test" if n < 10 else "train") for n, key in enumerate(records)}
    data = prepare_data(
        train=[folder.fasta("a.fa", records)],
        labels=[folder.table(rows, "id\tlabel\tsplit")],
        test_fraction=0.5,
    )
    assert parts_of(data)["test"] == [f"p{n}" for n in range(10)]
    assert len(data.valid) == 3


def test_without_test_files_or_fraction_there_is_no_test_part(folder):
    records = peptides(20)
    labels = folder.table({key: "ab"[n % 2] for n, key in enumerate(records)})
    data = prepare_data(train=[folder.fasta("a.fa", records)], labels=[labels])
    assert data.test is None
    assert set(data.splits.values()) == {"train", "valid"}


# Over-long sequences.


def long_set(folder: Folder) -> dict[str, list[str]]:
    records = peptides(12) | {"long": "M" * 50, "longer": "K" * 60}
    labels = folder.table({key: "ab"[n % 2] for n, key in enumerate(records)})
    return {"train": [folder.fasta("a.fa", records)], "labels": [labels]}


def test_overlong_records_are_refused_all_at_once(folder):
    message = error_of(FastaError, **long_set(folder), max_length=40)
    assert "2 records cannot be used" in message
    assert (
        "record 'long' (13th, line 25): 50 residues are more than data.max_length=40; raise it, "
        "or set data.overlong to truncate or skip." in message
    )


def test_overlong_records_can_be_truncated(folder):
    data = prepare_data(**long_set(folder), max_length=40, overlong="truncate")
    assert max(data.train.lengths.max(), data.valid.lengths.max()) == 40
    assert data.report["truncated"] == ["long", "longer"]


def test_overlong_records_can_be_left_out_and_are_reported(folder):
    data = prepare_data(**long_set(folder), max_length=40, overlong="skip")
    assert len(data.splits) == 12
    assert [(r["id"], r["line"]) for r in data.report["rejects"]] == [("long", 25), ("longer", 27)]
    assert data.report["labels_without_record"] == 0
    assert data.report["warnings"] == ["2 over-long records are left out (data.overlong=skip)"]


def test_leaving_out_every_record_is_an_error(folder):
    message = error_of(FastaError, **long_set(folder), max_length=1, overlong="skip")
    assert message.endswith("No record is left.")


def test_length_limit_counts_residues_that_are_read(folder):
    records = peptides(12) | {"gapped": "-".join("MKVLA")}
    labels = folder.table({key: "ab"[n % 2] for n, key in enumerate(records)})
    settings = {"train": [folder.fasta("a.fa", {"gapped": records["gapped"], **records})]}
    data = prepare_data(**settings, labels=[labels], max_length=30)
    assert len(data.splits) == 13


# What is refused.


def test_all_bad_records_of_all_files_come_in_one_message(folder):
    train = folder.write("train.fa", ">a\nMK1\n>b\nM字\n>\nMK\n>c\nMKVLAEF\n>e\n*\n")
    test = folder.write("test.fa", ">c\nMK\n>d\n>f\nMKV\n")
    message = error_of(FastaError, train=[train], test=[test])
    lines = message.splitlines()
    assert lines[0] == f"{train}: 4 records cannot be used:"
    assert [line.split("'")[1] for line in lines[1:5]] == ["a", "b", "", "e"]
    assert "no residue is left after dropping" in lines[4]
    assert lines[5] == f"{test}: 2 records cannot be used:"
    assert f"on line 7 of {train}" in lines[6]


def test_letters_outside_the_alphabet_come_with_a_hint_at_the_right_one(folder):
    train = folder.fasta("a.fa", peptides(30))
    message = error_of(FastaError, train=[train], alphabet="dna")
    assert "is not in the dna alphabet; fix it, or set tokenizer.other=unknown" in message
    assert message.endswith("look like protein, but are read as dna (tokenizer.alphabet).")


def test_one_wrong_letter_does_not_hint_at_another_alphabet(folder):
    message = error_of(FastaError, train=[folder.fasta("a.fa", {"a": "ACGT" * 30 + "E"})])
    assert "residue 121: 'E' is not in the dna alphabet" in message
    assert "look like" not in message


def test_records_without_label_are_listed_with_their_place(folder):
    train = folder.fasta("a.fa", peptides(15))
    labels = folder.table({"p0": "a", "p1": "b"})
    lines = error_of(LabelError, train=[train], labels=[labels]).splitlines()
    assert lines[0] == f"{train}: 13 records cannot be used:"
    assert lines[1] == (
        f"  record 'p2' (3rd, line 5): has no label in {labels}, column 'label'; add it or remove "
        "the record."
    )
    assert len(lines) == 12
    assert lines[-1] == "  and 3 more."


def test_table_without_header_is_suspected(folder):
    labels = folder.write("l.tsv", "".join(f"p{n}\t{'ab'[n % 2]}\n" for n in range(5)))
    train = folder.fasta("a.fa", peptides(5))
    message = error_of(LabelError, train=[train], labels=[labels])
    assert "record 'p0'" in message
    assert message.endswith("is its header; add one with the names.")


def test_labels_that_match_no_record_show_both_kinds_of_id(folder):
    train = folder.fasta("a.fa", peptides(5))
    labels = folder.table({f"sp|P{n}": "a" for n in range(5)})
    message = error_of(LabelError, train=[train], labels=[labels])
    assert message == (
        f"{labels}, column 'label': no id is that of a record. The records are called 'p0', 'p1', "
        "'p2'; the labels are for 'sp|P0', 'sp|P1', 'sp|P2'. Choose the id column with "
        "--id-column, or make the ids alike."
    )


def test_missing_labels_altogether_are_asked_for(folder):
    train = folder.fasta("a.fa", peptides(5))
    assert error_of(LabelError, train=[train]) == (
        f"{train}: no labels. Give a table with --labels, or write label=... into the headers."
    )


@pytest.mark.parametrize(("kind", "part"), [("valid", "v"), ("test", "t")])
def test_class_outside_training_is_named_with_its_records(folder, kind, part):
    train, other = peptides(12), peptides(3, part)
    labels = {key: "ab"[n % 2] for n, key in enumerate(train)} | {f"{part}0": "a"}
    labels |= {f"{part}1": "new", f"{part}2": "newer"}
    table, fasta = folder.table(labels), folder.fasta("other.fa", other)
    message = error_of(
        LabelError, train=[folder.fasta("a.fa", train)], labels=[table], **{kind: [fasta]}
    )
    lines = message.splitlines()
    assert lines[0] == f"{fasta}: 2 records cannot be used:"
    assert lines[1] == (
        f"  record '{part}1' (2nd, line 3): label on line 15 of {table}: 'new' is not among "
        "the classes seen in training (a, b)."
    )


def test_one_class_only_is_refused(folder):
    records = peptides(12)
    labels = folder.table(dict.fromkeys(records, "a"))
    message = error_of(LabelError, train=[folder.fasta("a.fa", records)], labels=[labels])
    assert message.startswith(f"{labels}, column 'label': Training needs two classes or more")


def test_label_of_its_own_for_every_record_is_refused(folder):
    records = peptides(30)
    labels = folder.table({key: f"protein {key}" for key in records})
    message = error_of(LabelError, train=[folder.fasta("a.fa", records)], labels=[labels])
    assert "has a label of its own" in message


@pytest.mark.parametrize("bad", ["n/a", "nan", "inf", "1,5"])
def test_targets_that_are_no_numbers_are_all_listed(folder, bad):
    records = peptides(60)
    labels = {key: str(n / 4) for n, key in enumerate(records)} | {"p3": bad, "p7": bad}
    table, train = folder.table(labels, "id\ttarget"), folder.fasta("a.fa", records)
    message = error_of(LabelError, train=[train], labels=[table])
    assert f"{train}: 2 records cannot be used" in message
    assert f"label on line 5 of {table}: expected a number, found {bad!r}." in message


def test_equal_targets_are_refused(folder):
    records = peptides(12)
    settings = {
        "train": [folder.fasta("a.fa", records)],
        "labels": [folder.table(dict.fromkeys(records, "0.5"))],
    }
    assert "Every training target is 0.5" in error_of(LabelError, **settings)


def test_residue_labels_of_another_length_are_listed(folder):
    records = {f"r{n}": "MKVLA" for n in range(6)}
    labels = dict.fromkeys(records, "HHNNN") | {"r1": "HHN", "r4": "HHNNNNN"}
    train, table = folder.fasta("a.fa", records), folder.fasta("labels.fa", labels)
    lines = error_of(LabelError, train=[train], labels=[table]).splitlines()
    end = "residue labels for 5 residues."
    assert lines == [
        f"{train}: 2 records cannot be used:",
        f"  record 'r1' (2nd, line 3): label on line 3 of {table}: 3 {end}",
        f"  record 'r4' (5th, line 9): label on line 9 of {table}: 7 {end}",
    ]


def test_labels_fasta_for_a_task_per_record_is_refused(folder):
    records = {f"r{n}": "MKVLA" for n in range(6)}
    settings = {
        "train": [folder.fasta("a.fa", records)],
        "labels": [folder.fasta("labels.fa", dict.fromkeys(records, "HHNNN"))],
    }
    message = error_of(LabelError, **settings, task="classification")
    assert "holds one letter per residue, but classification needs one label per record" in message


def test_unknown_names_in_the_split_column_are_listed(folder):
    records = peptides(12)
    names = ["train", "holdout", "fold3"]
    rows = {key: ("ab"[n % 2], names[n % 3]) for n, key in enumerate(records)}
    table = folder.table(rows, "id\tlabel\tsplit")
    message = error_of(LabelError, train=[folder.fasta("a.fa", records)], labels=[table])
    assert message == (
        f"{table}, column 'split': expected train, valid or test, found "
        "'holdout' (4 records), 'fold3' (4 records)."
    )


def test_records_without_split_are_listed(folder):
    records = peptides(12)
    rows = {key: ("ab"[n % 2], "" if n == 5 else "train") for n, key in enumerate(records)}
    settings = {
        "train": [folder.fasta("a.fa", records)],
        "labels": [folder.table(rows, "id\tlabel\tsplit")],
    }
    assert (
        f"record 'p5' (6th, line 11): has no split in {settings['labels'][0]}, column 'split'"
        in error_of(LabelError, **settings)
    )


def test_split_column_without_training_records_is_refused(folder):
    records = peptides(12)
    settings = {
        "train": [folder.fasta("a.fa", records)],
        "labels": [folder.table(dict.fromkeys(records, ("a", "test")), "id\tlabel\tsplit")],
    }
    assert "no record is for training" in error_of(LabelError, **settings)


@pytest.mark.parametrize(
    ("count", "fractions", "part"),
    [
        (4, {}, "valid"),
        (20, {"valid_fraction": 0.0}, "valid"),
        (12, {"test_fraction": 0.01}, "test"),
    ],
)
def test_part_that_would_stay_empty_is_refused(folder, count, fractions, part):
    records = peptides(count)
    settings = {
        "train": [folder.fasta("a.fa", records)],
        "labels": [folder.table({key: "ab"[n % 2] for n, key in enumerate(records)})],
    }
    message = error_of(DataError, **settings, **fractions)
    assert message.startswith(f"No record is left for {part}: ")
    assert f"data.{part}_fraction" in message
    assert f"--{part}" in message


def test_same_file_in_two_places_is_refused(folder):
    train = folder.fasta("a.fa", peptides(5))
    assert "is given twice" in error_of(FastaError, train=[train], test=[train])
    assert "is given twice" in error_of(FastaError, train=[train], labels=[train])


def test_no_training_file_is_refused():
    assert error_of(DataError, train=[]) == "There is no training file; name one with --train."


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("alphabet", "codon"),
        ("ambiguous", "drop"),
        ("overlong", "cut"),
        ("task", "ranking"),
        ("split_method", "kmeans"),
        ("ignore_labels", ["a"]),
        ("valid_fraction", 1.5),
    ],
)
def test_unknown_setting_is_refused(folder, setting, value):
    records = peptides(12)
    settings = {
        "train": [folder.fasta("a.fa", records)],
        "labels": [folder.table({key: "ab"[n % 2] for n, key in enumerate(records)})],
    }
    error_of(ConfigError, **settings, **{setting: value})


# Data for a trained model.


def trained(folder: Folder, alphabet: str = AMINO_ACIDS) -> PreparedData:
    rng = random.Random(3)
    records = {f"r{n}": "".join(rng.choices(alphabet, k=30)) for n in range(20)}
    labels = folder.table({key: "ab"[n % 2] for n, key in enumerate(records)})
    return prepare_data(train=[folder.fasta("train.fa", records)], labels=[labels])


def test_model_reads_a_file_as_training_read_it(folder):
    data = trained(folder)
    other, labels = folder.path / "train.fa", folder.path / "labels.tsv"
    dataset = read_for_model([str(other)], data.tokenizer, data.codec, labels=[str(labels)])
    assert list(dataset.ids) == list(data.splits)
    ids = list(dataset.ids)
    chosen = dataset.subset([ids.index(key) for key in data.train.ids])
    assert chosen.fingerprint() == data.train.fingerprint()


def test_model_takes_labels_from_headers_and_refuses_unknown_ones(folder):
    data = trained(folder)
    good = folder.write("good.fa", ">x label=b\nMKV\n>y label=a\nMKVL\n")
    assert read_for_model([good], data.tokenizer, data.codec).targets.tolist() == [1, 0]
    bad = folder.write("bad.fa", ">x label=b\nMKV\n>y label=c\nMKVL\n")
    with pytest.raises(LabelError, match=r"record 'y' \(2nd, line 3\).*'c' is not among"):
        read_for_model([bad], data.tokenizer, data.codec)


def test_model_applies_its_length_limit(folder):
    data = trained(folder)
    fasta = folder.write("x.fa", ">x label=b\nMKVLA\n>y label=a\nMK\n")
    read = read_for_model([fasta], data.tokenizer, data.codec, max_length=3, overlong="truncate")
    assert read.lengths.tolist() == [3, 2]


def test_protein_model_refuses_nucleotides_and_the_other_way_round(folder):
    dna = folder.write("dna.fa", ">x label=a\n" + "ACGT" * 300 + "\n")
    protein = folder.write("protein.fa", ">x label=a\n" + AMINO_ACIDS * 60 + "\n")
    model = trained(folder)
    with pytest.raises(DataError, match="look like dna; the model was trained on protein"):
        read_for_model([dna], model.tokenizer, model.codec)
    model = trained(folder, "ACGT")
    with pytest.raises(FastaError, match="look like protein, but are read as dna"):
        read_for_model([protein], model.tokenizer, model.codec)


def test_model_refuses_files_that_play_two_parts_or_hold_another_kind_of_label(folder):
    model = trained(folder)
    fasta = folder.write("x.fa", ">x label=a\nMK\n")
    with pytest.raises(FastaError, match="is given twice"):
        read_for_model([fasta], model.tokenizer, model.codec, labels=[fasta])
    residues = folder.write("labels.fa", ">x\nHH\n")
    with pytest.raises(LabelError, match="holds one letter per residue, but classification"):
        read_for_model([fasta], model.tokenizer, model.codec, labels=[residues])


def test_short_poly_alanine_is_no_reason_to_refuse(folder):
    model = trained(folder)
    fasta = folder.write("x.fa", ">x label=a\nAAAAAAGG\n")
    assert len(read_for_model([fasta], model.tokenizer, model.codec)) == 1


def test_preparing_data_does_not_import_torch():
    code = "import sys, seqtrain.data.prepare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Real data.

REAL = {
    "amplify_amp": ("classification", "protein", 2, (None, None, 1670)),
    "deeprt_swath": ("regression", "protein", 1, (None, None, 14658)),
    "esol_solubility": ("regression", "protein", 1, (None, None, 783)),
    "mipepid_sorf": ("classification", "dna", 2, (None, None, 1390)),
    "multipep_open": ("multilabel", "protein", 20, (13865, 4601, 4632)),
    "nrc_ncrna13": ("classification", "dna", 13, (5670, 650, 2600)),
    "tmbed_topology": ("residue_classification", "protein", 5, (None, None, 1307)),
    "wheat_coding_potential": ("classification", "dna", 2, (2799, 400, 800)),
}


def real_files(folder: Path) -> dict[str, list[str]]:
    files = {part: [folder / f"{part}.fasta"] for part in ("train", "valid", "test")}
    residues = folder / "labels.fasta"
    files["labels"] = [residues if residues.exists() else folder / "labels.tsv"]
    return {part: [str(p) for p in paths if p.exists()] for part, paths in files.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_data_prepare_without_an_option(real_data, name):
    task, alphabet, num_outputs, sizes = REAL[name]
    files = real_files(real_data / name)
    if name == "deeprt_swath":  # its 117,270 training records would take half a minute here
        files["train"] = files.pop("valid")
    data = prepare_data(**files)
    assert (data.codec.task, data.tokenizer.alphabet.name) == (task, alphabet)
    assert data.codec.num_outputs == num_outputs
    for part, size in zip((data.train, data.valid, data.test), sizes, strict=True):
        assert size is None or len(part) == size
    test = read_for_model(files["test"], data.tokenizer, data.codec, labels=files["labels"])
    assert test.fingerprint() == data.test.fingerprint()


def test_real_split_column_stands_in_for_files(real_data):
    folder = real_data / "esol_solubility"
    everything = [str(folder / "train.fasta"), str(folder / "test.fasta")]
    data = prepare_data(train=everything, labels=[str(folder / "labels.tsv")])
    assert len(data.test) == 783
    assert "labels.tsv, column 'split'" in data.report["split"]["how"]


def test_real_topology_ignores_unknown_residues(real_data):
    files = real_files(real_data / "tmbed_topology")
    data = prepare_data(**files, ignore_labels=["U"])
    assert data.codec.classes == ("B", "H", "N", "S")
    assert data.report["parts"]["test"]["ignored_residues"] == int((data.test.targets < 0).sum())
    assert (data.test.targets >= 0).sum() == 750037
