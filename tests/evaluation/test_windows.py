"""Windows cover a record evenly, and what is said of them becomes one answer."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import CODECS, TOKENIZER, tiny_model

from seqtrain.data.fasta import Record
from seqtrain.errors import ConfigError
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
