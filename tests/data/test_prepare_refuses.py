"""What is refused, and in which words."""

import re

import pytest
from prepared_data import error_of, peptides

from seqtrain.data.prepare import prepare_data
from seqtrain.errors import ConfigError, DataError, FastaError, LabelError


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
    assert "is not in the dna alphabet; remove or replace it" in message
    assert "\nOr set tokenizer.other=unknown to read such letters as N." in message
    assert message.endswith("The sequences look like protein, but are read as dna.")


def test_one_wrong_letter_does_not_hint_at_another_alphabet(folder):
    message = error_of(FastaError, train=[folder.fasta("a.fa", {"a": "ACGT" * 30 + "E"})])
    assert "residue 121: 'E' is not in the dna alphabet" in message
    assert "look like" not in message


def test_records_without_label_are_listed_with_their_place(folder):
    train = folder.fasta("a.fa", peptides(15))
    labels = folder.table({"p0": "a", "p1": "b"})
    lines = error_of(LabelError, train=[train], labels=[labels]).splitlines()
    assert lines[0] == f"{train}: 13 records cannot be used:"
    assert lines[1] == f"  record 'p2' (3rd, line 5): has no label in {labels}, column 'label'."
    assert lines[-2:] == [
        "  and 3 more.",
        "Add the labels, or leave these records out with --on-error skip.",
    ]


@pytest.mark.parametrize("mark", ["", "NA", "nan", "None", "?", "#N/A", "-"])
@pytest.mark.parametrize("header", ["label", "target"])
def test_missing_values_are_refused_or_left_out_with_a_count(folder, mark, header):
    records = peptides(40)
    rows = {key: n / 7 if header == "target" else "ab"[n % 2] for n, key in enumerate(records)}
    labels = folder.table({**rows, "p3": mark, "p8": mark}, f"id\t{header}")
    settings = {"train": [folder.fasta("a.fa", records)], "labels": [labels]}
    message = error_of(LabelError, **settings)
    assert "2 records cannot be used" in message
    what = f": {mark!r} is a missing value." if mark else " is missing."
    assert f"label on line 5 of {labels}{what}" in message
    data = prepare_data(**settings, on_error="skip")
    assert len(data.ids) == 38
    assert "p3" not in list(data.ids)
    assert [each["id"] for each in data.report["rejects"]] == ["p3", "p8"]
    assert (
        "2 records without a label are left out (data.on_error=skip): 'p3', 'p8'"
        in data.report["warnings"]
    )
    assert data.report["labels_without_record"] == 0


def test_records_without_any_label_cannot_all_be_skipped(folder):
    records = peptides(4)
    labels = folder.table(dict.fromkeys(records, "NA"))
    settings = {"train": [folder.fasta("a.fa", records)], "labels": [labels]}
    assert "every label is missing" in error_of(LabelError, **settings, on_error="skip")


def test_table_without_header_is_suspected(folder):
    labels = folder.write("l.tsv", "".join(f"p{n}\t{'ab'[n % 2]}\n" for n in range(5)))
    train = folder.fasta("a.fa", peptides(5))
    message = error_of(LabelError, train=[train], labels=[labels])
    assert "record 'p0'" in message
    assert message.endswith("is its header; add one with the names.")


def test_labels_that_match_no_record_show_both_kinds_of_id(folder):
    train = folder.fasta("a.fa", peptides(5))
    labels = folder.table({f"sp|Q{n}": "a" for n in range(5)})
    message = error_of(LabelError, train=[train], labels=[labels])
    assert message == (
        f"{labels}, column 'label': none of its ids matches a record. The records are called "
        "'p0', 'p1', 'p2', 'p3', 'p4'; the labels are for 'sp|Q0', 'sp|Q1', 'sp|Q2', 'sp|Q3', "
        "'sp|Q4'. Choose the id column with "
        "--id-column, or make the ids alike."
    )


def test_missing_labels_altogether_are_asked_for(folder):
    train = folder.fasta("a.fa", peptides(5))
    assert error_of(LabelError, train=[train]) == (
        f"{train}: no labels. Give a table with --labels, or write label=... into the headers; "
        "or learn the sequences themselves with task=mlm, which needs none."
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


@pytest.mark.parametrize("bad", ["n.d.", ">5", "inf", "1,5", "1_000"])
def test_targets_that_are_no_numbers_are_all_listed(folder, bad):
    records = peptides(60)
    labels = {key: str(n / 4) for n, key in enumerate(records)} | {"p3": bad, "p7": bad}
    table, train = folder.table(labels, "id\ttarget"), folder.fasta("a.fa", records)
    message = error_of(LabelError, train=[train], labels=[table])
    assert f"{train}: 2 records cannot be used" in message
    assert (
        f"label on line 5 of {table}: expected a number such as 1234.5, found {bad!r}." in message
    )


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
        "'holdout' (4 records), 'fold3' (4 records). Write these names, name another column with "
        "--split-column, or leave it aside with --split-column ''."
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
def test_part_that_would_stay_empty_is_refused_with_a_fraction_that_fills_it(
    folder, count, fractions, part
):
    records = peptides(count)
    settings = {
        "train": [folder.fasta("a.fa", records)],
        "labels": [folder.table({key: "ab"[n % 2] for n, key in enumerate(records)})],
    }
    message = error_of(DataError, **settings, **fractions)
    assert message.startswith(f"No record is left for {part}: ")
    assert message.endswith(f"or give files with --{part}.")
    proposed = float(re.search(rf"Set data\.{part}_fraction=([\d.]+),", message)[1])
    data = prepare_data(**settings, **{**fractions, f"{part}_fraction": proposed})
    assert len(getattr(data, part)) > 0


def test_no_fraction_is_proposed_where_none_helps(folder):
    labels = folder.table({"p0": "a", "p1": "b"})
    message = error_of(DataError, train=[folder.fasta("a.fa", peptides(2))], labels=[labels])
    assert message.endswith("is too little. Add records, or give files with --valid.")


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


@pytest.mark.parametrize(
    ("kind", "mark", "said"),
    [
        ("table", "\u200f", "U+200F (right-to-left mark)"),
        ("table", "\u2028", "U+2028 (line separator)"),
        ("table", "\x1b[31m", "U+001B (a control character)"),
        ("header", "\u202e", "U+202E (right-to-left override)"),
        ("header", "\x1b[31m", "U+001B (a control character)"),
    ],
)
def test_a_class_that_shows_as_another_is_refused_with_its_place(folder, kind, mark, said):
    names = {f"p{n}": f"a{mark}b" if n % 3 == 2 else "ab" for n in range(20)}
    records = peptides(20)
    if kind == "table":
        train, labels = folder.fasta("a.fa", records), [folder.table(names)]
        place = f"{labels[0]}: line 4, record 'p2': "
    else:
        text = "".join(f">{key} label={names[key]}\n{seq}\n" for key, seq in records.items())
        train, labels = folder.write("a.fa", text), []
        place = f"{train}: line 5, record 'p2': "
    message = error_of(LabelError, train=[train], labels=labels, task="classification")
    assert message.startswith(place)
    assert said in message
    assert mark not in message.replace(repr(mark)[1:-1], "")


def test_a_line_end_within_a_quoted_class_is_refused(folder):
    rows = "".join(f'p{n},"a\rb"\n' if n % 2 else f"p{n},ab\n" for n in range(20))
    labels = folder.write("labels.csv", f"id,label\n{rows}")
    train = folder.fasta("a.fa", peptides(20))
    message = error_of(LabelError, train=[train], labels=[labels], task="classification")
    assert "U+000A" in message


def test_a_record_that_fits_into_no_memory_is_refused_as_soon_as_it_is_read(folder, monkeypatch):
    """Before letters are hidden, which takes many times the memory of the record itself."""

    def not_reached(*_):
        raise AssertionError("the record went on to be masked")

    monkeypatch.setattr("seqtrain.data.prepare._divided", not_reached)
    records = peptides(30) | {"huge": "MKVL" * 100}
    message = error_of(DataError, train=[folder.fasta("a.fa", records)], task="mlm", most=399)
    assert message.startswith("record 'huge': 400 residues do not fit into memory in one piece")
    assert "data.max_length=399 data.overlong=truncate" in message
