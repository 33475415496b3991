"""Splits named by columns, tables and headers: read, compared, or said to be left aside."""

from pathlib import Path

import pytest
from prepared_data import Folder, error_of, parts_of, peptides

from seqtrain.data.fasta import Header
from seqtrain.data.for_model import read_for_model
from seqtrain.data.header_splits import read_header_splits
from seqtrain.data.prepare import PreparedData, prepare_data
from seqtrain.errors import ConfigError, LabelError

NUM = 20
SPLITS = {f"p{n}": "test" if n < 4 else "valid" if n < 8 else "train" for n in range(NUM)}
LABELS = {f"p{n}": "ab"[n % 2] for n in range(NUM)}


def fasta(folder: Folder, attributes: dict[str, str] | None = None, name: str = "a.fa") -> str:
    """Records with attributes in their headers."""
    records = peptides(NUM)
    return folder.fasta(
        name, {f"{k} {(attributes or {}).get(k, '')}": s for k, s in records.items()}
    )


def splits_table(folder: Folder, splits: dict[str, str], name: str = "splits.tsv") -> str:
    rows = "".join(f"{record}\t{split}\n" for record, split in splits.items())
    return folder.write(name, f"id\tsplit\n{rows}")


def warnings_of(data: PreparedData, word: str) -> list[str]:
    return [line for line in data.report["warnings"] if word in line]


def has_splits(data: PreparedData) -> bool:
    return dict(data.splits()) == SPLITS


@pytest.mark.parametrize(
    ("header", "split"),
    [
        ("x split=test", "test"),
        ("x SET=train VALIDATION=True", "valid"),
        ("x SET=train VALIDATION=False", "train"),
        ("x SET=test VALIDATION=False", "test"),
        ("x VALIDATION=True", "valid"),
        ("x VALIDATION=False", "train"),
        ("x set=val", "val"),
        ("x [label=a] [split=test]", "test"),
        ("x label:a split:test", "test"),
        ("x label = a split = test", "test"),
        ("x,label=a,split=test", "test"),
        ("x|label=a|split=test", "test"),
        ("x y;label=a;split=test", "test"),
        ('x split="test" label="two words"', "test"),
        ("x set=A12 split=test", "test"),
        ("x set=A12", "A12"),
        ("x data set: human split", None),
        ("x offset=test", None),
        ("x label=a", None),
    ],
)
def test_a_split_in_a_header_is_read_in_every_usual_form(header, split):
    name, _, description = header.partition(" ")
    texts, _ = read_header_splits([Header(name, description, "a.fa", 1, 0)])
    assert texts == ({name: split} if split else {})


@pytest.mark.parametrize("split_column", [None, "split"])
@pytest.mark.parametrize("kind", ["table", "fasta", "header", "mlm"])
def test_headers_name_splits_beside_every_kind_of_labels(folder, kind, split_column):
    both = {k: f"split={split} label={LABELS[k]}" for k, split in SPLITS.items()}
    only = {k: f"split={split}" for k, split in SPLITS.items()}
    settings = {"train": [fasta(folder, both if kind == "header" else only)]}
    if kind == "table":
        settings["labels"] = [folder.table(LABELS)]
    if kind == "fasta":
        letters = {k: ("HN" * len(s))[: len(s)] for k, s in peptides(NUM).items()}
        settings["labels"] = [folder.fasta("labels.fa", letters)]
    if kind == "mlm":
        settings["task"] = "mlm"
    assert has_splits(prepare_data(**settings, split_column=split_column))


def test_headers_of_a_labels_fasta_name_splits_too(folder):
    letters = {
        f"{k} SET={'test' if SPLITS[k] == 'test' else 'train'} VALIDATION={SPLITS[k] == 'valid'}": (
            "HN" * len(s)
        )[: len(s)]
        for k, s in peptides(NUM).items()
    }
    data = prepare_data(train=[fasta(folder)], labels=[folder.fasta("labels.fa", letters)])
    assert has_splits(data)


@pytest.mark.parametrize("how", ["splits", "labels"])
@pytest.mark.parametrize("kind", ["table", "fasta", "header", "mlm"])
def test_a_splits_table_goes_with_every_kind_of_labels(folder, kind, how):
    attributes = {k: f"label={v}" for k, v in LABELS.items()} if kind == "header" else None
    settings: dict[str, object] = {"train": [fasta(folder, attributes)]}
    labels = [folder.table(LABELS)] if kind == "table" else []
    if kind == "fasta":
        letters = {k: ("HN" * len(s))[: len(s)] for k, s in peptides(NUM).items()}
        labels = [folder.fasta("labels.fa", letters)]
    if kind == "mlm":
        settings["task"] = "mlm"
    table = splits_table(folder, SPLITS)
    settings |= (
        {"labels": [*labels, table]}
        if how == "labels"
        else {
            "labels": labels,
            "splits": [table],
        }
    )
    data = prepare_data(**settings)
    assert has_splits(data)
    assert data.report["split"]["how"] == f"by {table}"


def test_a_splits_table_names_every_record_and_ids_of_no_record_are_told(folder):
    settings = {"train": [fasta(folder)], "labels": [folder.table(LABELS)]}
    table = splits_table(folder, {k: v for k, v in SPLITS.items() if k != "p5"})
    message = error_of(LabelError, **settings, splits=[table])
    assert f"record 'p5' (6th, line 11): has no split in {table}." in message
    table = splits_table(folder, {**SPLITS, "stranger": "test"})
    data = prepare_data(**settings, splits=[table])
    assert has_splits(data)
    assert warnings_of(data, "match no record") == [f"1 ids of {table} match no record: 'stranger'"]
    table = splits_table(folder, {"stranger": "test"})
    assert "none of its ids matches a record" in error_of(LabelError, **settings, splits=[table])
    table = splits_table(folder, {**SPLITS, "p3": "holdout"})
    assert "found 'holdout' (1 record)" in error_of(LabelError, **settings, splits=[table])


def test_a_splits_table_beside_files_or_another_split_is_refused(folder):
    other = folder.fasta("t.fa", peptides(4, "t"))
    table = splits_table(folder, SPLITS)
    settings = {"train": [fasta(folder)], "labels": [folder.table(LABELS)], "splits": [table]}
    assert "--test" in error_of(ConfigError, **settings, test=[other])
    swapped = {k: (LABELS[k], "train" if v == "test" else v) for k, v in SPLITS.items()}
    labels = folder.table(swapped, "id\tlabel\tsplit")
    message = error_of(LabelError, **settings)
    assert "name different splits for 4 records, such as 'p0': train and test" in message
    assert labels in message
    assert has_splits(prepare_data(**settings, split_column=""))


def test_a_split_column_beside_files_is_refused_and_what_it_contradicts_is_counted(folder):
    columns = {k: (LABELS[k], v) for k, v in SPLITS.items()} | {"t0": ("a", "train")}
    labels = folder.table(columns | {"t1": ("b", "test")}, "id\tlabel\tsplit")
    other = folder.fasta("t.fa", peptides(2, "t"))
    settings = {"train": [fasta(folder)], "test": [other], "labels": [labels]}
    message = error_of(ConfigError, **settings, split_column="split")
    assert message.startswith("--split-column split: --test give the split by file")
    (line,) = warnings_of(prepare_data(**settings), "contradicts the files")
    assert line.startswith(f"{labels}, column 'split' contradicts the files for 9 records: ")
    assert "4 of the train files are test there" in line
    assert "4 of the train files are valid there" in line
    assert "1 of the test files are train there" in line
    assert not warnings_of(prepare_data(**settings, split_column="none"), "contradicts")


def test_headers_that_contradict_a_column_are_told(folder):
    records = [fasta(folder, {k: f"split={v}" for k, v in SPLITS.items()})]
    columns = {k: (LABELS[k], v) for k, v in SPLITS.items()}
    agreeing = folder.table(columns, "id\tlabel\tsplit")
    assert not warnings_of(prepare_data(train=records, labels=[agreeing]), "different splits")
    swapped = folder.table(columns | {"p0": ("a", "train")}, "id\tlabel\tsplit")
    data = prepare_data(train=records, labels=[swapped])
    (line,) = warnings_of(data, "different splits")
    assert "for 1 record, such as 'p0': test and train" in line
    assert "p0" in parts_of(data)["train"]


def test_a_split_column_that_is_nowhere_is_refused(folder):
    settings = {"train": [fasta(folder)], "labels": [folder.table(LABELS)]}
    message = error_of(LabelError, **settings, split_column="lable")
    assert message.endswith("no header has lable=... Did you mean 'label'?")
    assert settings["labels"][0] in message
    attributes = {k: f"label={v}" for k, v in LABELS.items()}
    message = error_of(LabelError, train=[fasta(folder, attributes)], split_column="split")
    assert message.startswith("--split-column split: no header has split=...")


@pytest.mark.parametrize("place", ["set", "partition", "header"])
def test_a_column_found_by_name_that_holds_no_splits_is_left_aside(folder, place):
    other = {k: "A12" if n % 2 else "B7" for n, k in enumerate(SPLITS)}
    if place == "header":
        settings = {
            "train": [fasta(folder, {k: f"label={LABELS[k]} set={other[k]}" for k in other})]
        }
    else:
        rows = {k: (LABELS[k], other[k]) for k in other}
        settings = {"train": [fasta(folder)], "labels": [folder.table(rows, f"id\tlabel\t{place}")]}
    key = "set" if place == "header" else place
    data = prepare_data(**settings)
    assert data.test is None
    (line,) = warnings_of(data, "left aside")
    assert "found 'B7' (10 records), 'A12' (10 records)" in line
    assert "--split-column ''" in line
    assert "found 'B7' (10 records)" in error_of(LabelError, **settings, split_column=key)
    for off in ("", "none"):
        assert not warnings_of(prepare_data(**settings, split_column=off), "left aside")


def test_a_column_left_aside_does_not_hide_the_splits_in_headers(folder):
    rows = {k: (v, "A12") for k, v in LABELS.items()}
    data = prepare_data(
        train=[fasta(folder, {k: f"split={v}" for k, v in SPLITS.items()})],
        labels=[folder.table(rows, "id\tlabel\tset")],
    )
    assert has_splits(data)


@pytest.mark.parametrize("off", ["", "none", "None"])
def test_splits_are_turned_off(folder, off):
    columns = {k: (LABELS[k], v) for k, v in SPLITS.items()}
    data = prepare_data(
        train=[fasta(folder, {k: f"split={v}" for k, v in SPLITS.items()})],
        labels=[folder.table(columns, "id\tlabel\tsplit")],
        split_column=off,
        test_fraction=0.0,
    )
    assert data.test is None
    assert len(data.train) == 18


def test_ids_of_labels_and_splits_are_matched_by_rule_and_counted(folder: Folder, tmp_path: Path):
    records = {f"sp|Q{n}|NAME{n}_X": s for n, s in enumerate(peptides(NUM).values())}
    labels = folder.table({f"Q{n}": "ab"[n % 2] for n in range(NUM)} | {"Q99": "a"})
    table = splits_table(folder, {f"q{n}": SPLITS[f"p{n}"] for n in range(NUM)})
    data = prepare_data(train=[folder.fasta("a.fa", records)], labels=[labels], splits=[table])
    assert [part for _, part in data.splits()] == list(SPLITS.values())
    assert [data.codec.decode(data.train.target(i)) for i in range(2)] == ["a", "b"]
    assert (
        f"{labels}, column 'label': 20 of 20 record ids are matched by the accession"
        in (warnings_of(data, "matched by")[0])
    )
    assert warnings_of(data, "matched by")[1].startswith(f"{table}: 20 of 20 record ids")
    assert warnings_of(data, "no record") == [
        f"1 label of {labels}, column 'label' has no record and is not used"
    ]


@pytest.mark.parametrize(
    ("files", "asked", "said"),
    [
        (
            "valid",
            ["valid_fraction"],
            ["valid_fraction is not used: the valid split is given"],
        ),
        ("valid", ["split_method"], ["split_method is not used: no split is left to be made"]),
        ("test", ["split_method", "valid_fraction"], []),
        ("test", ["test_fraction"], ["test_fraction is not used: the test split is given by file"]),
        ("header", ["id_column"], ["id_column is not used: there is no table of labels or splits"]),
        ("fasta", ["label_column"], ["label_column is not used: a labels FASTA has no columns"]),
        ("table", ["id_column", "label_column", "valid_fraction", "split_method"], []),
        ("mlm", ["on_error"], ["on_error is not used: there are no labels"]),
    ],
)
def test_settings_that_were_given_and_have_nothing_to_do_are_told(folder, files, asked, said):
    attributes = {k: f"label={v}" for k, v in LABELS.items()} if files == "header" else None
    settings: dict[str, object] = {"train": [fasta(folder, attributes)]}
    if files in ("valid", "test", "table"):
        settings["labels"] = [folder.table({**LABELS, "t0": "a", "t1": "b"})]
    if files in ("valid", "test"):
        settings[files] = [folder.fasta("t.fa", peptides(2, "t"))]
    if files == "fasta":
        letters = {k: ("HN" * len(s))[: len(s)] for k, s in peptides(NUM).items()}
        settings["labels"] = [folder.fasta("labels.fa", letters)]
    if files == "mlm":
        settings["task"] = "mlm"
    lines = warnings_of(prepare_data(**settings, asked=asked), "is not used")
    assert len(lines) == len(said)
    assert all(line.startswith(f"data.{start}") for line, start in zip(lines, said, strict=True))
    assert not warnings_of(prepare_data(**settings), "is not used")


def test_a_model_is_scored_on_labels_beside_a_splits_table(folder):
    train = [fasta(folder)]
    labels = [folder.table(LABELS), splits_table(folder, SPLITS)]
    data = prepare_data(train=train, labels=labels)
    scored = read_for_model(train, data.tokenizer, data.codec, labels=labels)
    assert len(scored.dataset) == NUM


def test_splits_of_records_that_are_not_there_are_nobodys_business(folder):
    rows = {k: (LABELS[k], SPLITS[k]) for k in LABELS}
    rows |= {f"extra{n}": ("a", "test_extra_negatives") for n in range(3)}
    labels = folder.table(rows, "id\tlabel\tsplit")
    assert has_splits(prepare_data(train=[fasta(folder)], labels=[labels]))
    rows["p3"] = ("b", "test_extra_negatives")
    labels = folder.table(rows, "id\tlabel\tsplit")
    message = error_of(LabelError, train=[fasta(folder)], labels=[labels])
    assert "found 'test_extra_negatives' (1 record)" in message
