"""Duplicates, leaks and the length alarm, on small sets by hand and on real ones by their notes."""

import csv
import subprocess
import sys

import numpy as np
import pytest

from seqtrain.data.audit import (
    Duplicates,
    alarms,
    baselines,
    find_duplicates,
    find_leaks,
    length_only_baseline,
    majority_baseline,
    search_leaks,
)
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.nearest import Effort


def as_dataset(records, targets=None, per_residue=False):
    arrays = [np.frombuffer(sequence.encode(), np.uint8) for sequence in records.values()]
    return SequenceDataset.from_lists(list(records), arrays, targets, per_residue=per_residue)


def test_duplicates_are_found_within_and_between_splits_with_conflicting_labels():
    splits = {
        "train": as_dataset({"a": "ACGT", "b": "GGCC", "c": "ACGT", "d": "TTTT"}, [0, 1, 0, 1]),
        "valid": as_dataset({"e": "CCCC"}, [0]),
        "test": as_dataset({"f": "GGCC", "g": "ACGT", "h": "CCCC", "i": "CCCC"}, [1, 1, 0, 0]),
    }
    assert find_duplicates(splits) == Duplicates(
        within={"train": ["c"], "valid": [], "test": ["i"]},
        between={"train/valid": [], "train/test": ["g", "f"], "valid/test": ["h", "i"]},
        conflicting=[["a", "c", "g"]],
    )


def test_conflicts_are_seen_in_residue_labels_and_absent_without_labels():
    residues = [np.array([0, 1]), np.array([0, 0])]
    same = {"a": "AC", "b": "AC"}
    labelled = find_duplicates({"train": as_dataset(same, residues, per_residue=True)})
    assert labelled.conflicting == [["a", "b"]]
    assert find_duplicates({"train": as_dataset(same)}).conflicting == []


def test_leaks_name_the_nearest_record_of_an_earlier_split_nearest_first():
    rng = np.random.default_rng(0)
    originals = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 200)) for _ in range(6)]
    close = originals[0][:100] + "W" + originals[0][101:]
    far = "".join(x if i % 12 else "W" for i, x in enumerate(originals[0]))
    splits = {
        "train": as_dataset({"t0": originals[0], "t1": originals[1], "t0far": far}),
        "valid": as_dataset({"v": originals[2]}),
        "test": as_dataset(
            {"x": originals[5], "close": close, "far": far[:-1], "equal": originals[2]}
        ),
    }
    leaks = find_leaks(splits, identity=0.8)
    assert [(leak.id, leak.nearest, leak.nearest_split) for leak in leaks] == [
        ("far", "t0far", "train"),
        ("equal", "v", "valid"),
        ("close", "t0", "train"),
    ]
    assert {leak.split for leak in leaks} == {"test"}
    assert leaks[1].identity == 1.0
    assert 0.9 < leaks[2].identity < 1.0


def test_the_search_says_its_rule_and_what_it_left_out():
    rng = np.random.default_rng(0)
    parent = rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 60)
    variants = np.tile(parent, (60, 1))
    variants[np.arange(60), np.arange(60)] = "W"
    records = {f"v{i}": "".join(row) for i, row in enumerate(variants)}
    ids = list(records)
    splits = {
        "train": as_dataset({i: records[i] for i in ids[:40]}),
        "test": as_dataset({i: records[i] for i in ids[40:]}),
    }
    whole = search_leaks(splits)
    assert (whole.counted("test"), whole.counted("train"), whole.limits) == ("20", "0", [])
    assert "80% of their residues or more" in whole.rule
    assert "words of 5 residues" in whole.rule
    part = search_leaks(splits, effort=Effort(positions=0, meetings=0))
    assert part.counted("test") == "at least 0"
    assert len(part.limits) == 2
    sampled = search_leaks(splits, effort=Effort(words=2000, positions=0, meetings=10**9))
    assert sampled.counted("test").startswith("about ")


def test_records_alike_within_one_split_are_no_leak():
    rng = np.random.default_rng(0)
    one = "".join(rng.choice(list("ACGT"), 300))
    assert find_leaks({"train": as_dataset({"a": one, "b": one}), "test": as_dataset({})}) == []


def length_scores(separation, task="classification"):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 2000)
    lengths = (rng.normal(200, 40, 2000) + separation * labels).astype(np.int64).clip(10)
    halves = lengths[:1000], labels[:1000], lengths[1000:], labels[1000:]
    return {
        "majority": majority_baseline(halves[1], halves[3], task),
        "length_only": length_only_baseline(*halves, task),
    }


def test_alarm_says_when_length_alone_predicts_the_label():
    (sentence,) = alarms(length_scores(200), "classification")
    assert sentence.startswith("The length of a sequence alone predicts its label (mcc 0.9")
    assert "for the commonest class" in sentence


@pytest.mark.parametrize("separation", [0, 30])
def test_no_alarm_when_length_tells_little(separation):
    assert alarms(length_scores(separation), "classification") == []


def test_no_alarm_in_an_unbalanced_set_that_length_says_nothing_about():
    rng = np.random.default_rng(0)
    labels = (rng.random(2000) < 0.03).astype(np.int64)
    lengths = rng.integers(20, 500, 2000)
    scores = length_only_baseline(
        lengths[:1000], labels[:1000], lengths[1000:], labels[1000:], "classification"
    )
    assert scores["accuracy"] > 0.95
    assert alarms({"length_only": scores}, "classification") == []


@pytest.mark.parametrize(
    ("task", "name", "value", "count"),
    [
        ("regression", "r2", 0.6, 1),
        ("regression", "r2", 0.4, 0),
        ("multilabel", "macro_auroc", 0.9, 1),
        ("multilabel", "macro_auroc", float("nan"), 0),
        ("residue_classification", "mcc", 1.0, 0),
    ],
)
def test_each_task_has_its_own_limit(task, name, value, count):
    assert len(alarms({"length_only": {name: value}}, task)) == count


def test_no_alarm_without_a_length_only_baseline():
    assert alarms({"majority": {"mcc": 0.0}}, "classification") == []


def test_importing_the_data_room_starts_neither_scikit_learn_nor_torch():
    code = (
        "import sys, seqtrain.data.audit, seqtrain.data.splits, seqtrain.data.dataset\n"
        "print(sorted({'torch', 'sklearn', 'scipy', 'pyarrow', 'Bio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def read(folder, numbers):
    """Splits of a real set by name, labels as classes or numbers."""
    from Bio.SeqIO.FastaIO import SimpleFastaParser

    with (folder / "labels.tsv").open() as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    column = "target" if "target" in rows[0] else "label"
    label = {row["id"]: row[column] for row in rows}
    classes = sorted(set(label.values()))
    splits = {}
    for name in ("train", "valid", "test"):
        path = folder / f"{name}.fasta"
        if path.exists():
            with path.open() as handle:
                records = {
                    title.split()[0]: seq.upper() for title, seq in SimpleFastaParser(handle)
                }
            values = [label[record] for record in records]
            targets = [float(v) for v in values] if numbers else [classes.index(v) for v in values]
            splits[name] = as_dataset(records, targets)
    return splits


@pytest.mark.parametrize(
    ("name", "task", "metric", "noted", "alarm"),
    [
        ("nrc_ncrna13", "classification", "accuracy", 0.454, False),
        ("amplify_amp", "classification", "accuracy", 0.529, False),
        ("wheat_coding_potential", "classification", "accuracy", 0.66, False),
        ("mipepid_sorf", "classification", "accuracy", 0.955, True),
        ("esol_solubility", "regression", "r2", 0.10, False),
    ],
)
def test_length_only_reaches_what_was_noted_with_the_real_sets(
    real_data, name, task, metric, noted, alarm
):
    splits = read(real_data / name, task == "regression")
    train, test = splits["train"], splits["test"]
    scores = length_only_baseline(train.lengths, train.targets, test.lengths, test.targets, task)
    assert scores[metric] == pytest.approx(noted, abs=0.012)
    assert bool(alarms({"length_only": scores}, task)) == alarm


def test_composition_is_a_stronger_bar_than_length_on_real_peptides(real_data):
    splits = read(real_data / "amplify_amp", numbers=False)
    scores = baselines(splits["train"], splits["test"], "classification")
    assert scores["majority"]["accuracy"] == 0.5
    assert scores["composition"]["accuracy"] >= 0.86
    assert scores["composition"]["auroc"] >= 0.927


@pytest.mark.parametrize(
    ("name", "between", "conflicting"),
    [
        ("nrc_ncrna13", {"train/valid": 0, "train/test": 309, "valid/test": 38}, 0),
        ("esol_solubility", {"train/test": 8}, 21),
        ("mipepid_sorf", {"train/test": 83}, 0),
    ],
)
def test_duplicates_noted_with_the_real_sets_are_found(real_data, name, between, conflicting):
    splits = read(real_data / name, numbers=name == "esol_solubility")
    found = find_duplicates(splits)
    assert {pair: len(ids) for pair, ids in found.between.items()} == between
    assert len(found.conflicting) == conflicting
    equal = {record for pair, ids in found.between.items() for record in ids}
    assert equal <= {leak.id for leak in find_leaks(splits, identity=0.99) if leak.identity == 1}
