"""From files to tokens, targets and parts."""

import json
import random
import statistics
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prepared_data import AMINO_ACIDS, Folder, error_of, parts_of, peptides

from seqtrain.data.labels import IGNORE
from seqtrain.data.prepare import prepare_data
from seqtrain.errors import FastaError


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
    assert [key for key in train if dict(data.splits())[key] == "train"] == parts_of(data)["train"]
    assert list(data.ids) == [*train, *test]
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
    assert data.train.targets.dtype == np.float64
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
    names = ["a", "b;c", "a;c"]
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
    assert "1 over-long record lost its end" in data.report["warnings"]


def test_report_is_json_and_tells_files_counts_and_choices(folder):
    records = peptides(20) | {"odd": "MK-BX*U", "other": "MKKK"}
    labels = {key: "ab"[n % 2] for n, key in enumerate(records)}
    fasta, table = folder.fasta("a.fa", records), folder.table(labels | {"gone": "a", "z": "b"})
    report = json.loads(json.dumps(prepare_data(train=[fasta], labels=[table]).report))
    assert report["files"]["train"][0]["path"] == fasta
    assert report["files"]["labels"][0]["bytes"] == Path(table).stat().st_size
    assert report["alphabet"] == {"name": "protein", "how": "inferred from the letters"}
    assert report["task"] == {
        "name": "classification",
        "how": "22 cells, 2 different names",
    }
    assert report["label_columns"] == [
        f"{table}, label column 'label' (by its name), id column 'id' (by its name)"
    ]
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
        "1 gap dropped",
        "1 stop dropped",
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
    assert dict(data.splits()) == {key: name for name, ids in parts.items() for key in ids}
    assert dict(prepare_data(**settings).splits()) == dict(data.splits())


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
    kinds = ["a,b", "a", "b"]  # the names that follow stand in one cell each
    labels = {key: kinds[n % 3] for n, key in enumerate(records)}
    labels |= {f"p{n}": f"a,single{n}" for n in range(0, 60, 3)}
    for seed in range(5):
        data = prepare_data(
            train=[folder.fasta("a.fa", records)],
            labels=[folder.table(labels)],
            task="multilabel",
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
        assert len({dict(data.splits())[f"f{n}_{copy}"] for copy in range(4)}) == 1


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
    assert dict(data.splits()) == {key: expected[rows[key][1]] for key in records}
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
    assert set(data.parts) == {"train", "valid"}


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
    assert len(data.ids) == 12
    assert [(r["id"], r["line"]) for r in data.report["rejects"]] == [("long", 25), ("longer", 27)]
    assert data.report["labels_without_record"] == 0
    assert "2 over-long records are left out (data.overlong=skip)" in data.report["warnings"]


def test_leaving_out_every_record_is_an_error(folder):
    message = error_of(FastaError, **long_set(folder), max_length=1, overlong="skip")
    assert message.endswith("No record is left.")


def test_length_limit_counts_residues_that_are_read(folder):
    records = peptides(12) | {"gapped": "-".join("MKVLA")}
    labels = folder.table({key: "ab"[n % 2] for n, key in enumerate(records)})
    settings = {"train": [folder.fasta("a.fa", {"gapped": records["gapped"], **records})]}
    data = prepare_data(**settings, labels=[labels], max_length=30)
    assert len(data.ids) == 13
