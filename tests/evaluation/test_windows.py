"""Windows cover a record evenly, and what is said of them becomes one answer."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import CODECS, TOKENIZER, tiny_model

from seqtrain.data.fasta import Record
from seqtrain.data.lengths import LengthRule
from seqtrain.errors import ConfigError, FastaError
from seqtrain.evaluation import windows as windows_module
from seqtrain.evaluation.predict import Predictor
from seqtrain.evaluation.windows import Windows

LETTERS = TOKENIZER.alphabet.letters
REACH = 2 * (1 + 2 + 4)
"""Residues to either side that the tiny CNN sees: kernel 5, dilations 1, 2 and 4."""


def drawn(length: int, seed: int = 0) -> str:
    return "".join(np.random.default_rng(seed).choice(list(LETTERS), length))


def ask(task: str, text: str, windows: Windows | None, pooling: str = "mean") -> np.ndarray:
    models = [tiny_model(task=task, pooling=pooling)]
    predictor = Predictor(models, TOKENIZER, CODECS[task], 100, windows=windows)
    (found,) = predictor(iter([Record("r", "", text, "x", 1, 0)]))
    assert found.values is not None
    return found.values


@given(length=st.integers(1, 300), size=st.integers(1, 60), share=st.floats(0, 0.99))
def test_windows_cover_the_record_and_overlap_at_least_as_asked(
    length: int, size: int, share: float
) -> None:
    windows = Windows(size, int(share * size))
    starts = windows.starts(length)
    pieces = list(windows.cut(np.arange(length)))
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert [piece[0] for piece in pieces] == starts
    assert {len(piece) for piece in pieces} == {min(size, length)}
    assert pieces[-1][-1] == length - 1
    for before, after in pairwise(pieces):
        assert before[-1] + 1 - after[0] >= windows.overlap
    # Each residue of the stitched record says where it came from: its own place.
    places = [piece[:, None] for piece in pieces]
    assert windows.stitch(places, length)[:, 0].tolist() == list(range(length))


def test_each_residue_comes_from_the_window_whose_ends_are_farthest() -> None:
    windows = Windows(10, 4)
    starts = windows.starts(22)
    pieces = [np.full((10, 1), i) for i in range(len(starts))]
    chosen = windows.stitch(pieces, 22)[:, 0]
    for place, window in enumerate(chosen.tolist()):
        margins = [min(place - s, s + 9 - place) for s in starts]
        inner = [i for i in range(len(starts)) if 0 <= place - starts[i] < 10]
        best = max(margins[i] for i in inner)
        at_an_end = place < 5 or place >= 17
        assert window in inner
        assert at_an_end or margins[window] >= best - 1


def test_residues_are_those_of_the_whole_record_where_windows_overlap_enough() -> None:
    text = drawn(160)
    whole = ask("residue_classification", text, None)
    found = ask("residue_classification", text, Windows(60, 2 * REACH + 1))
    np.testing.assert_allclose(found, whole, atol=2e-5)
    poor = ask("residue_classification", text, Windows(20, 0))
    assert np.abs(poor - whole).max() > 0.01


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_a_record_is_the_mean_of_its_windows(task: str) -> None:
    text = drawn(50)
    found = ask(task, text, Windows(20, 5))
    each = [ask(task, text[start : start + 20], None) for start in (0, 15, 30)]
    np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-5)


@pytest.mark.parametrize("task", sorted(CODECS))
def test_a_record_that_fits_is_read_whole(task: str) -> None:
    text = drawn(20)
    assert np.array_equal(ask(task, text, Windows(20, 5)), ask(task, text, None))


def test_long_and_short_records_keep_their_order() -> None:
    texts = [drawn(n, n) for n in (5, 90, 1, 33, 200)]
    predictor = Predictor(
        [tiny_model()], TOKENIZER, CODECS["classification"], 100, windows=Windows(30, 10)
    )
    entries = (Record(f"r{i}", "", text, "x", i, i) for i, text in enumerate(texts))
    found = list(predictor(entries))
    assert [p.length for p in found] == [5, 90, 1, 33, 200]
    for prediction, text in zip(found, texts, strict=True):
        alone = ask("classification", text, Windows(30, 10), "mean_max")
        assert prediction.values is not None
        assert torch.allclose(torch.tensor(prediction.values), torch.tensor(alone), atol=1e-5)


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (5, 5), (5, -1)])
def test_windows_that_do_not_move_on_are_refused(size: int, overlap: int) -> None:
    with pytest.raises(ConfigError, match="less than the window"):
        Windows(size, overlap)


def test_what_a_user_leaves_out_is_chosen() -> None:
    assert Windows.of(None, None) is None
    assert Windows.of(100, None) == Windows(100, 25)
    with pytest.raises(ConfigError, match="no --window"):
        Windows.of(None, 5)


@pytest.mark.parametrize("task", ["classification", "regression", "residue_classification"])
def test_windows_read_a_few_at_a_time_say_the_same(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, windows = drawn(230), Windows(20, 5)
    at_once = ask(task, text, windows)
    monkeypatch.setattr(windows_module, "RESIDUES_AT_ONCE", 50)
    np.testing.assert_allclose(ask(task, text, windows), at_once, atol=1e-6)


def test_memory_does_not_grow_with_the_windows_of_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_module, "RESIDUES_AT_ONCE", 10_000)
    held: list[int] = []

    def read(pieces: list[np.ndarray]) -> list[np.ndarray]:
        held.append(sum(map(len, pieces)))
        return pieces

    joined = np.zeros(1_000_000, np.uint8)

    def take(_: int, part: windows_module.Range, values: np.ndarray) -> None:
        joined[part.begin : part.end] += values[part.within]

    record = np.random.default_rng(0).integers(1, 5, len(joined)).astype(np.uint8)
    windows_module.read_in_windows([record], Windows(1000, 250), read, take)
    assert max(held) < 12_000
    np.testing.assert_array_equal(joined, record)


def test_a_record_that_does_not_fit_into_memory_is_refused_or_its_row_says_so() -> None:
    records = [Record(f"r{i}", "", drawn(n), "x", 2 * i + 1, i) for i, n in enumerate((30, 200))]
    predictor = Predictor(
        [tiny_model()], TOKENIZER, CODECS["classification"], 100, lengths=LengthRule(room=100)
    )
    with pytest.raises(FastaError, match=r"'r1'.*200 residues do not fit into memory.*--window"):
        list(predictor(iter(records)))
    found = list(replace(predictor, on_error="skip")(iter(records)))
    assert found[0].status == "ok"
    assert found[1].status.startswith("200 residues do not fit into memory in one pass")
