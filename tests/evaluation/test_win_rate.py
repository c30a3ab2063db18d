"""Win rates: counts, ties as half, and both intervals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from allaprima.core.errors import SettingError
from allaprima.evaluation.win_rate import wilson_interval, win_rate


def test_closed_form():
    found = win_rate([1, 2, 3, 4], [0, 2, 4, 3])
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    assert found.bootstrap.mean == found.wilson.mean == pytest.approx(2.5 / 4)
    swapped = win_rate([1, 2, 3, 4], [0, 2, 4, 3], higher_is_better=False)
    assert (swapped.wins, swapped.ties, swapped.losses) == (1, 1, 2)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_a_over_b_and_b_over_a_are_one_together(pairs):
    a, b = zip(*pairs, strict=True)
    one, other = win_rate(a, b, rounds=50), win_rate(b, a, rounds=50)
    assert one.bootstrap.mean + other.bootstrap.mean == pytest.approx(1)
    assert one.wilson.low == pytest.approx(1 - other.wilson.high, abs=1e-12)
    assert one.bootstrap.low <= one.bootstrap.mean <= one.bootstrap.high


@pytest.mark.parametrize(("k", "n"), [(0, 5), (3, 10), (40, 40), (7, 500)])
def test_wilson_is_scipys(k, n):
    truth = stats.binomtest(k, n).proportion_ci(0.9, method="wilson")
    found = wilson_interval(k, n, 0.9)
    assert (found.low, found.high) == pytest.approx((truth.low, truth.high), abs=1e-12)


def test_wilson_covers_and_is_left_out_when_prompts_repeat():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        wins = (rng.random(60) < 0.7).astype(float)
        i = win_rate(wins, 0.5 * np.ones(60), rounds=1).wilson
        covered += i.low <= 0.7 <= i.high
    assert 0.92 <= covered / 400 <= 0.98
    assert win_rate([1, 2], [0, 3], prompts=[4, 4]).wilson is None


def test_prompts_are_resampled_not_pictures():
    # Ten pictures of a prompt agree: only four prompts' worth of evidence.
    prompts = np.repeat(np.arange(4), 10)
    a = np.where(prompts < 2, 1.0, -1.0)
    by_prompt = win_rate(a, np.zeros(40), prompts.tolist()).bootstrap
    by_picture = win_rate(a, np.zeros(40)).bootstrap
    assert by_prompt.high - by_prompt.low > 2 * (by_picture.high - by_picture.low)


def test_bad_input_is_named():
    with pytest.raises(SettingError, match="3 scores of A and 2 of B"):
        win_rate([1, 2, 3], [1, 2])
    with pytest.raises(SettingError, match="one at least"):
        win_rate([], [])
    with pytest.raises(SettingError, match="score 1 of B is nan"):
        win_rate([1, 2], [1, float("nan")])
    with pytest.raises(SettingError, match="one group a value"):
        win_rate([1, 2], [1, 3], prompts=[1])
    with pytest.raises(SettingError, match="level=95"):
        win_rate([1, 2], [1, 3], level=95)
    with pytest.raises(SettingError, match="6 wins of 5"):
        wilson_interval(6, 5)
