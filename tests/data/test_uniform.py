import pytest
from prepared_data import peptides

from seqtrain.compose import load_config
from seqtrain.data.prepare import prepare_data
from seqtrain.data.uniform import is_uniform
from seqtrain.pipeline import plan_run


@pytest.mark.parametrize(
    ("header", "cells", "valid", "told"),
    [
        ("label", "ab", "a", "of the class 'a'"),
        ("target", ["0.25", "1.5", "7.75"], "2.5", "of the value 2.5"),
        ("label", ["a;b", "a", "b"], "a;b", "of a;b"),
    ],
)
def test_validation_part_of_one_target_is_told_with_the_fix(folder, header, cells, valid, told):
    records = peptides(40)
    rows = {
        key: (valid, "valid") if n < 4 else (cells[n % len(cells)], "train")
        for n, key in enumerate(records)
    }
    files = {
        "train": [folder.fasta("a.fa", records)],
        "labels": [folder.table(rows, f"id\t{header}\tsplit")],
    }
    task = "regression" if header == "target" else None
    data = prepare_data(**files, task=task)
    assert is_uniform(data.valid, data.codec)
    assert not is_uniform(data.train, data.codec)
    (warning,) = [text for text in data.report["warnings"] if "valid part" in text]
    assert f"all records of the valid part are {told}" in warning
    assert "Give other files with --valid, or a larger data.valid_fraction" in warning
    values = {f"data.{name}": paths for name, paths in files.items()}
    overrides = ["data=files", *([f"task.name={task}"] if task else [])]
    plan = plan_run(load_config("config", overrides, values=values))
    assert plan.config.trainer.monitor == "loss"
    assert any(choice.key == "trainer.monitor" for choice in plan.choices)
    given = load_config("config", [*overrides, "trainer.monitor=loss"], values=values)
    assert plan_run(given).config.trainer.monitor == "loss"


def test_residue_labels_of_one_class_are_told(folder):
    records = peptides(20)
    letters = {
        key: ("H" if n < 2 else "HC" * 20)[: len(text)].ljust(len(text), "-" if n < 2 else "H")
        for n, (key, text) in enumerate(records.items())
    }
    valid = dict(list(records.items())[:2])
    train = dict(list(records.items())[2:])
    data = prepare_data(
        train=[folder.fasta("a.fa", train)],
        valid=[folder.fasta("v.fa", valid)],
        labels=[folder.fasta("l.fa", letters)],
    )
    assert any(
        "all residues of the valid part are of the class 'H'" in w for w in data.report["warnings"]
    )
    assert any("read as residues that were not measured" in w for w in data.report["warnings"])
