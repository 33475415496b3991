import json
import statistics
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqtrain.data.labels import IGNORE, LabelCodec, mean_number, read_numbers
from seqtrain.errors import ConfigError, LabelError

names = st.text(alphabet=string.ascii_letters + " _-/", min_size=1).map(str.strip).filter(bool)
numbers = st.floats(-1e6, 1e6).map(lambda x: repr(round(x, 20)))


@given(
    st.lists(
        st.none() | st.floats(-1e6, 1e6, width=32).map(lambda x: round(x, 20)),
        min_size=2,
        max_size=9,
    ),
    st.sampled_from([",", ", ", " ", "\t"]),
    st.sampled_from(["NA", "nan", "-", "?"]),
)
def test_numbers_of_residues_are_read_with_their_gaps(values, separator, missing):
    text = separator.join(missing if value is None else repr(value) for value in values)
    got = read_numbers(text)
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, [np.nan if v is None else v for v in values])
    codec = LabelCodec("residue_regression")
    again = codec.decode(codec.encode(text))
    np.testing.assert_allclose(codec.encode(again), got, rtol=1e-5)


def test_nothing_between_commas_is_a_residue_without_a_number():
    np.testing.assert_array_equal(read_numbers("1,,2,"), [1, np.nan, 2, np.nan])


def test_what_is_no_number_is_told_with_its_residue():
    with pytest.raises(
        LabelError, match=r"residue 2: expected a number such as 1234.5, found 'high'"
    ):
        LabelCodec("residue_regression").encode("1,high,2")


def test_the_scale_of_residue_numbers_is_that_of_those_measured():
    codec = LabelCodec.fit("residue_regression", ["1,NA,3", "5"])
    assert (codec.mean, codec.std) == (3.0, pytest.approx(np.sqrt(8 / 3)))
    with pytest.raises(LabelError, match="Every training target is missing"):
        LabelCodec.fit("residue_regression", ["NA,NA", "-,-"])
    assert (mean_number("1,NA,3"), mean_number("NA,NA")) == (2.0, 0.0)


@given(st.lists(names, min_size=2).filter(lambda values: len(set(values)) > 1))
def test_every_class_has_its_index_in_sorted_order(values):
    codec = LabelCodec.fit("classification", iter(values))
    assert list(codec.classes) == sorted(set(values))
    assert codec.num_outputs == len(set(values))
    assert [codec.classes[codec.encode(value)] for value in values] == values
    assert [codec.decode(np.int64(codec.encode(value))) for value in values] == values


def test_numbered_classes_are_sorted_by_value():
    assert LabelCodec.fit("classification", ["10", "9", "2", "10"]).classes == ("2", "9", "10")


@given(st.lists(numbers, min_size=2).filter(lambda values: len(set(map(float, values))) > 1))
def test_regression_keeps_raw_targets_with_mean_and_spread(values):
    codec = LabelCodec.fit("regression", values)
    targets = [float(value) for value in values]
    assert [codec.encode(value) for value in values] == targets
    assert [codec.decode(codec.encode(value)) for value in values] == targets
    assert codec.mean == pytest.approx(statistics.fmean(targets), rel=1e-9, abs=1e-6)
    assert codec.std == pytest.approx(statistics.pstdev(targets), rel=1e-6, abs=1e-6)
    assert codec.num_outputs == 1


@given(
    st.lists(st.sets(names, min_size=1).map(sorted), min_size=1), st.sampled_from([",", ";", "|"])
)
def test_multilabel_target_marks_exactly_the_names_in_the_cell(cells, separator):
    codec = LabelCodec.fit("multilabel", [f" {separator} ".join(cell) for cell in cells])
    assert list(codec.classes) == sorted({name for cell in cells for name in cell})
    for cell in cells:
        target = codec.encode(separator.join(cell))
        assert target.dtype == np.float32
        assert target.shape == (codec.num_outputs,)
        assert [codec.classes[i] for i in np.flatnonzero(target)] == cell
        assert codec.decode(target) == codec.separator.join(cell)


def test_residue_label_that_an_older_model_has_as_a_class_stays_one():
    codec = LabelCodec("residue_classification", ("-", "H"))
    assert codec.encode("H-?").tolist() == [1, 0, IGNORE]


@pytest.mark.parametrize("text", ["1e39", "-1e39", "1e-40", "0.5,1e39"])
def test_number_that_float32_cannot_hold_is_refused_by_name(text):
    task = "residue_regression" if "," in text else "regression"
    with pytest.raises(LabelError, match=r"'-?1e-?\d+' is too (large|small) for float32"):
        LabelCodec(task).encode(text)


def test_multilabel_separator_is_the_rarest_in_names():
    codec = LabelCodec.fit("multilabel", ["1,3-glucan;b", "b", "c;"])
    assert codec.classes == ("1,3-glucan", "b", "c")
    assert codec.separator == ";"


def test_ignored_name_of_a_multilabel_task_is_no_class():
    codec = LabelCodec.fit("multilabel", ["a,b", "none"], ignore=["none"])
    assert codec.classes == ("a", "b")
    assert codec.encode("none").tolist() == [0, 0]
    assert codec.encode("b,none").tolist() == [0, 1]


@given(
    st.lists(st.text(alphabet="HhBU1-?é字", min_size=1), min_size=1),
    st.sets(st.sampled_from("UH1")),
)
def test_residue_targets_name_each_residue_or_ignore_it(values, ignore):
    ignore = sorted(ignore)
    classes = sorted({letter for value in values for letter in value} - {*ignore, *"-?"})
    if len(classes) < 2:
        with pytest.raises(LabelError, match="two classes or more"):
            LabelCodec.fit("residue_classification", values, ignore)
        return
    codec = LabelCodec.fit("residue_classification", values, ignore)
    assert list(codec.classes) == classes
    for value in values:
        target = codec.encode(value)
        assert target.dtype == np.int64
        gone = {*ignore, *"-?"}
        expected = [IGNORE if letter in gone else classes.index(letter) for letter in value]
        assert target.tolist() == expected
        mark = ignore[0] if ignore else "-"
        blind = "".join(mark if letter in gone else letter for letter in value)
        assert codec.decode(target) == blind


@pytest.mark.parametrize(
    ("task", "values", "ignore"),
    [
        ("classification", ["a", "b"], ()),
        ("multilabel", ["a;b", "c"], ("c",)),
        ("regression", ["0.1", "3"], ()),
        ("residue_classification", ["HNU"], ("U",)),
    ],
)
def test_codec_survives_json(task, values, ignore):
    codec = LabelCodec.fit(task, values, ignore)
    assert LabelCodec.from_dict(json.loads(json.dumps(codec.to_dict()))) == codec


@pytest.mark.parametrize(
    ("task", "values", "bad", "message"),
    [
        ("classification", ["a", "b"], "c", r"'c' is not among .* \(a, b\)"),
        ("multilabel", ["a,b"], "a,c", "'c' is not among"),
        ("regression", ["1", "2"], "n/a", "expected a number such as 1234.5, found 'n/a'"),
        ("regression", ["1", "2"], "inf", "expected a number such as 1234.5, found 'inf'"),
        ("residue_classification", ["HN"], "HNxN", "residue 3: 'x' is not among"),
        ("residue_classification", ["HN"], "A", "residue 1: 'A' is not among"),
    ],
)
def test_label_that_training_has_not_seen_is_refused(task, values, bad, message):
    with pytest.raises(LabelError, match=message):
        LabelCodec.fit(task, values).encode(bad)


@pytest.mark.parametrize(
    ("task", "labels", "ignore", "names"),
    [
        ("classification", ["a,b", "c"], (), {"a,b"}),
        ("multilabel", ["a;b ; none", "c"], ("none",), {"a", "b"}),
        ("residue_classification", ["HHNU", "N"], ("U",), {"H", "N"}),
        ("regression", ["0.5", "1"], (), {"0.5"}),
    ],
)
def test_names_of_a_label_are_its_classes(task, labels, ignore, names):
    assert LabelCodec.fit(task, labels, ignore).names(labels[0]) == names


def test_long_lists_of_classes_are_cut_in_messages():
    codec = LabelCodec.fit("classification", [f"c{n:02}" for n in range(30)])
    with pytest.raises(LabelError, match=r"c10, c11, \.\.\.\)"):
        codec.encode("x")


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("classification", ["a", "a"], "two classes or more, found a"),
        ("residue_classification", ["HH", "H"], "two classes or more, found H"),
        ("multilabel", [",", ", "], "two classes or more, found none"),
        ("regression", ["2", "2.0"], "Every training target is 2"),
        ("regression", ["2", "x"], "expected a number such as 1234.5, found 'x'"),
    ],
)
def test_labels_that_teach_nothing_are_refused(task, values, message):
    with pytest.raises(LabelError, match=message):
        LabelCodec.fit(task, values)


@pytest.mark.parametrize(
    ("task", "ignore", "message"),
    [
        ("clasification", (), "task: expected one of classification, .*'clasification'"),
        ("classification", ("a",), "no use in classification"),
        ("regression", ("1",), "no use in regression"),
        ("residue_classification", ("HH",), "one letter, found 'HH'"),
    ],
)
def test_settings_that_do_not_fit_the_task_are_refused(task, ignore, message):
    with pytest.raises(ConfigError, match=message):
        LabelCodec.fit(task, ["a", "b"], ignore)
