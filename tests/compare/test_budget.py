"""What fits into a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqtrain.compare.budget import RESERVE, Fit, fit_budget, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("30m", 1800), ("4h", 14400), ("1h30m", 5400), ("90s", 90), ("5", 300)]
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "30x", "m", "-3m"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="30m"):
        parse_duration(text)


@given(
    st.floats(10, 1e5), st.floats(0.01, 100), st.floats(0, 30), st.integers(1, 12),
    st.integers(1, 40), st.integers(1, 10),
)  # fmt: skip
def test_what_is_chosen_fits_unless_nothing_less_exists(
    seconds: float, epoch: float, beside: float, conditions: int, epochs: int, seeds: int
) -> None:
    fit = fit_budget(seconds, epoch, beside, conditions, Fit(epochs, seeds, 0))
    assert 1 <= fit.epochs <= epochs
    assert 1 <= fit.seeds <= seeds
    assert fit.seconds == pytest.approx(fit.seeds * conditions * (beside + fit.epochs * epoch))
    least = fit.epochs == 1 and fit.seeds == min(2, seeds)
    assert least or fit.seconds <= seconds * RESERVE * (1 + 1e-9)


def test_epochs_are_shortened_before_seeds_are_lost() -> None:
    fit = fit_budget(1000 / RESERVE, 10, 0, 1, Fit(40, 5, 0))
    assert (fit.epochs, fit.seeds) == (20, 5)
    fit = fit_budget(300 / RESERVE, 10, 0, 1, Fit(40, 5, 0))
    assert (fit.epochs, fit.seeds) == (15, 2)


def test_a_generous_budget_changes_nothing() -> None:
    fit = fit_budget(1e9, 10, 5, 6, Fit(7, 5, 0))
    assert (fit.epochs, fit.seeds) == (7, 5)
