import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqtrain.data.cells import is_missing, missing_marks, read_number
from seqtrain.data.interpret import infer_task, interpret
from seqtrain.data.labels import LabelCodec
from seqtrain.data.lookalikes import class_warnings
from seqtrain.errors import LabelError


def spread(cells: list[str], count: int = 60) -> list[str]:
    return [cells[n % len(cells)] for n in range(count)]


def decimals(count: int = 60, low: float = 0, high: float = 100) -> list[str]:
    rng = random.Random(count)
    return [f"{rng.uniform(low, high):.2f}" for _ in range(count)]


@pytest.mark.parametrize(
    ("values", "column", "task"),
    [
        (spread(["0", "1"]), "activity", "classification"),
        (spread(["0.0", "1.0"]), "label", "classification"),
        (spread(["1", "2", "10"]), "label", "classification"),
        (spread([str(n) for n in range(10)]), "label", "classification"),
        (spread([str(n) for n in range(10)]), "score", "regression"),
        (spread([str(n) for n in range(12)]), "class", "classification"),
        (spread([str(n) for n in range(12)]), "target", "regression"),
        (spread(["1.1", "2.2", "3.4"]), "ec_number", "classification"),
        ([str(n) for n in range(60)], "label", "regression"),
        (decimals(), "label", "regression"),
        (spread(decimals(200), 6000), "label", "regression"),
        ([*decimals(), "n/a"], "label", "regression"),
        ([*decimals(), ">5", "<0.1", ">10"], "label", "regression"),
        (["0.1", "high"] * 5, "label", "classification"),
        ([*map(str, range(10)), *"abcdefghij"], "label", "classification"),
        (spread(["1_1", "2_2", "3_1"]), "label", "classification"),
        (spread(["amp", "non_amp"]), "label", "classification"),
        (spread(["ER/Golgi", "Nucleus"]), "label", "classification"),
        (spread(["Nucleus, speckle", "Cytoplasm"]), "label", "classification"),
        (spread(["ATP-binding; putative", "Hydrolase"]), "label", "classification"),
        (spread(["DNA|RNA", "none"]), "label", "classification"),
        (spread(["a;b", "b;c", "a"]), "label", "multilabel"),
        (spread(["a,b", "b, c", "c,a", "d"]), "label", "multilabel"),
        (spread(["1,2,3", "1,2", "3"]), "label", "multilabel"),
        (spread(["Golgi, membrane", "ER, membrane", "Nucleus"]), "locations", "multilabel"),
        (spread(["['a', 'b']", "['b']", "['a']", "[]"]), "label", "multilabel"),
        (spread(["['a']", "['b']"]), "label", "classification"),
        (["0.5,1,NA", "2,,3.25"], "label", "residue_regression"),
        (["0.5 1 NA", "2 3"], "label", "residue_regression"),
    ],
)
def test_task_is_told_from_the_labels(values, column, task):
    assert infer_task(values, "table", column) == task


@pytest.mark.parametrize(
    ("values", "column", "both"),
    [
        (spread([str(n) for n in range(12)]), "label", ("classification", "regression")),
        (
            spread([f"{n}.{m}" for n in range(1, 6) for m in range(1, 8)]),
            "label",
            ("classification", "regression"),
        ),
        (
            spread(["1e1", "2e2", "3e3", "4e4"] + [f"{n}e1" for n in range(3, 12)]),
            "label",
            ("classification", "regression"),
        ),
        (spread(["a", "b", "a;c"]), "label", ("multilabel", "classification")),
        ([*spread(["a", "b", "c"], 59), "a;b"], "label", ("multilabel", "classification")),
        (
            spread(["Hydrolase, ester", "Hydrolase, peptide", "Other"]),
            "label",
            ("multilabel", "classification"),
        ),
        (spread(["1,2", "1", "2,3"]), "label", ("data.decimal=comma", "multilabel")),
    ],
)
def test_labels_of_two_readings_stop_with_both(values, column, both):
    with pytest.raises(LabelError, match="can be read in two ways") as caught:
        infer_task(values, "table", column)
    assert all(f"{name}" in str(caught.value) for name in both)


@given(st.lists(st.integers(0, 99_99), min_size=40, max_size=60), st.sampled_from("+-"))
def test_decimal_commas_read_as_points_do(cents, sign):
    """A comma before fractions changes nothing but the text."""
    values = [f"{sign}{n // 100},{n % 100:02}" for n in cents]
    reading = interpret(values, "table", column="activity")
    assert reading.task == "regression"
    numbers = [float(reading.rewritten[value]) for value in values]
    assert numbers == [float(value.replace(",", ".")) for value in values]
    assert "decimal comma" in reading.reason


@pytest.mark.parametrize(
    ("cells", "numbers", "name"),
    [
        (["3,300.3", "1,124.7", "12.5"], [3300.3, 1124.7, 12.5], "comma between thousands"),
        (["1,234,567", "2,345", "999"], [1234567, 2345, 999], "comma between thousands"),
        (["1 234", "22 345", "999"], [1234, 22345, 999], "blank between thousands"),
        (["1\xa0234,5", "22\u202f345", "999"], [1234.5, 22345, 999], "decimal comma"),
        (["1'234.5", "22\u2019345"], [1234.5, 22345], "apostrophe between thousands"),
        (["1.234,5", "22.345,25", "7,5"], [1234.5, 22345.25, 7.5], "decimal comma"),
        (["-1,50", "0,05", "\u22122,5"], [-1.5, 0.05, -2.5], "decimal comma"),
    ],
)
def test_marks_between_thousands_are_read_by_a_stated_rule(cells, numbers, name):
    reading = interpret(cells, "table", column="ic50")
    assert [float(reading.rewritten.get(cell, cell)) for cell in cells] == numbers
    assert name in reading.reason


@pytest.mark.parametrize("task", [None, "regression"])
def test_comma_before_three_digits_is_asked_for(task):
    cells = ["3,300", "1,124", "2,724", "101"]
    with pytest.raises(LabelError, match=r"'3,300' \(3.300 by a decimal comma, 3300 by a comma"):
        interpret(cells, "table", column="ic50", task=task)
    for decimal, number in (("comma", "3.300"), ("point", "3300")):
        reading = interpret(cells, "table", column="ic50", task=task, decimal=decimal)
        assert reading.rewritten["3,300"] == number


def test_decimal_comma_of_a_given_regression_is_warned_of():
    reading = interpret(["1,50", "0,05", "12,5"], "table", task="regression")
    assert reading.notes == ("read as numbers with a decimal comma: '1,50' is 1.50",)


def test_points_beside_commas_are_refused():
    with pytest.raises(LabelError, match=r"decimal points \('1.5'\) and with decimal commas"):
        interpret(["1.5", "2,5", "3,25", "4,75"], "table", column="activity")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (spread(["[0, 1, 0]", "[1, 1, 0]"]), "vectors of 3 zeros and ones"),
        (spread(["[0 1 0]", "[1 1 0]"]), "vectors of 3 zeros and ones"),
        (spread(["0,1,0", "1,1,0"]), "vectors of 3 zeros and ones"),
        (spread(["0 1", "1 0", "1 1"]), "vectors of 2 zeros and ones"),
        (spread(["[0.5, 1.5]", "[2.5, 3]"]), "lists of 2 numbers"),
        (spread(["['a']", "['b']", "c"]), "is a list in brackets and 'c' is none"),
        (spread(["{'a': 1, 'b': 0}", "{'a': 0, 'b': 1}"]), "are dictionaries"),
        ([f"{n},5%" for n in range(20)], "numbers in a form that is not read"),
        ([f"{n}.25 kJ/mol" for n in range(20)], "numbers in a form that is not read"),
        ([f"{n}.5±0.1" for n in range(20)], "numbers in a form that is not read"),
        ([f"${n}" for n in range(20)], "numbers in a form that is not read"),
        ([hex(n) for n in range(20)], "numbers in a form that is not read"),
        (
            ["\u0661\u0662" + chr(0x660 + n % 10) + "\u0663" * (n // 10) for n in range(20)],
            "is not read",
        ),
    ],
)
def test_forms_without_a_reading_are_named(cells, message):
    with pytest.raises(LabelError, match=message):
        interpret(cells, "table", column="label")


def test_lists_and_trailing_marks_are_read_as_what_they_are():
    lists = interpret(spread(["['a', 'b|c']", '["a"]', "[]"]), "table")
    assert lists.separator == ";"
    assert lists.rewritten == {"['a', 'b|c']": "a;b|c", '["a"]': "a", "[]": ""}
    assert interpret(spread(["a;", ",b"]), "table").rewritten == {"a;": "a", ",b": "b"}


@pytest.mark.parametrize("names", [["16S", "23S"], [f"GH{n}" for n in range(20)], [">5%", "<5%"]])
def test_names_with_numbers_in_them_are_names(names):
    assert interpret(spread(names), "table", column="label").task == "classification"


def test_numbers_that_often_mean_no_value_are_warned_of():
    (note,) = interpret([*decimals(), "-999", "-999.0"], "table", column="score").notes
    assert note.startswith("'-999' (2 times) lies far below all other numbers")
    assert interpret([*decimals(), "-999", "-700"], "table", column="score").notes == ()


def test_classes_that_look_alike_or_mean_no_value_are_warned_of():
    def warned(*names):
        codec = LabelCodec("multilabel", names)
        return " ".join(class_warnings(codec, []))

    for pair in (["a b", "a_b"], ["a-b", "a\u2013b"], ["'a'", "a"], ["A", "\u0410"]):
        assert "Write them alike" in warned(*pair)
    assert warned("A-", "A+", "A", "5'", "5") == ""
    for name in ("NA", ".", "--", "unknown", "-999"):
        assert f"{name!r} is read as a class" in warned("a", name)
    assert warned("+", "-") == ""


def test_other_separators_are_named():
    reading = interpret([*spread(["a;b", "b;c", "a"]), "DNA|RNA"], "table", column="label")
    assert reading.separator == ";"
    assert "1 cells hold '|' too, which is read as part of a name: 'DNA|RNA'" in reading.notes[0]
    reading = interpret(spread(["a / b", "a", "b"]), "table", column="label")
    assert reading.task == "classification"
    assert "'a / b' is read as one class, though its parts are classes too" in reading.notes[0]
    reading = interpret(spread(["a+b", "a", "b"]), "table", column="label")
    assert "'a+b' is read as one class, though its parts are classes too" in reading.notes[0]


def test_labels_as_long_as_their_sequences_are_those_of_residues():
    lengths = [(3,), (5, 4), (4,)]
    assert interpret(["HCH", "HHCC", "CCHC"], "header", lengths=lengths).task == (
        "residue_classification"
    )
    bare = interpret(["1,0,1", "1,1,0,0", "0,0,0,1"], "table", lengths=lengths)
    assert bare.task == "residue_regression"
    bracketed = interpret(["[1, 0, 1]", "[1 1 0 0]", "[0,0,0,1]"], "table", lengths=lengths)
    assert (bracketed.task, bracketed.rewritten["[1 1 0 0]"]) == ("residue_regression", "1,1,0,0")


def test_labels_fasta_is_a_residue_task():
    assert infer_task(["HHNN"], "fasta") == "residue_classification"


@pytest.mark.parametrize(
    "text", ["", " ", "NA", "na", "nan", "NaN", "None", "N/A", "#N/A", "?", "-", "null", "NULL"]
)
def test_marks_of_missing_values_are_known(text):
    assert is_missing(text)


def test_marks_beside_their_counterparts_are_names():
    assert not is_missing("none")
    assert missing_marks(["+", "-", "NA"]) == {"NA"}
    assert missing_marks(["a", "NA", "?"], names=["NA"]) == {"?"}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1.5", 1.5),
        ("-.5", -0.5),
        ("+3.", 3.0),
        ("1E-3", 1e-3),
        ("\u22122", -2.0),
        ("1_000", None),
        ("infinity", None),
        ("1e999", None),
        ("0x10", None),
        ("\u0661", None),
        ("1,5", None),
        ("", None),
    ],
)
def test_numbers_are_read_by_our_rule(text, number):
    assert read_number(text) == number
