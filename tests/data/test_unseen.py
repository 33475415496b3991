import pytest
from prepared_data import error_of, peptides

from seqtrain.data.prepare import prepare_data
from seqtrain.errors import LabelError


def settings(folder, cells, test):
    records = peptides(40)
    rows = {
        key: (test, "test") if n < 3 else (cells[n % len(cells)], "train")
        for n, key in enumerate(records)
    }
    table = folder.table(rows, "id\tlabel\tsplit")
    return {"train": [folder.fasta("a.fa", records)], "labels": [table]}


@pytest.mark.parametrize(
    ("cells", "test", "name"),
    [(["a", "b"], "c", "c"), (["a;b", "b", "a"], "a;z", "z"), (["1", "2"], "10", "10")],
)
def test_class_of_the_test_part_alone_is_refused_or_counts_as_missed(folder, cells, test, name):
    files = settings(folder, cells, test)
    files["task"] = "multilabel" if ";" in test else None
    message = error_of(LabelError, **files)
    assert f"{name!r} is not among the classes seen in training" in message
    assert message.endswith("or set data.unseen=miss to count them as missed.")
    data = prepare_data(**files, unseen="miss")
    assert data.codec.classes[-1] == name
    told = f"classes that no training record has: {name!r} (3 records); their records count as"
    assert any(told in text for text in data.report["warnings"])
    counts = {part: facts["classes"][name] for part, facts in data.report["parts"].items()}
    assert counts == {"train": 0, "valid": 0, "test": 3}


def test_warning_of_many_unseen_classes_stays_short(folder):
    records = peptides(60)
    rows = {
        key: (f"odd{n}", "test") if n < 30 else ("ab"[n % 2], "train")
        for n, key in enumerate(records)
    }
    files = {
        "train": [folder.fasta("a.fa", records)],
        "labels": [folder.table(rows, "id\tlabel\tsplit")],
    }
    warnings = prepare_data(**files, unseen="miss").report["warnings"]
    (told,) = [text for text in warnings if "no training record has" in text]
    assert "and 25 more" in told
    assert len(told) < 300
