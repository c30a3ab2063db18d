"""Correlations against scipy, their intervals' coverage, verdicts, areas, votes by band."""

import numpy as np
import pytest
from scipy import stats

from allaprima.analysis.association import association, difference_of, spearman
from allaprima.analysis.bands import band_names, band_of
from allaprima.analysis.decisions import area
from allaprima.analysis.distance import votes_by_band
from allaprima.analysis.pairs import CONFIRMED, NOT_SEEN, REFUTED, verdict
from allaprima.core.errors import SettingError
from allaprima.evaluation.decision import area_under_curve, decision_accuracy
from allaprima.evaluation.intervals import Interval


def test_spearman_and_pearson_are_scipys_with_ties_too():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=60), rng.integers(0, 5, 60).astype(float)
    y += (x > 0.5) * 3
    found = association(x, y, range(60), rounds=50)
    assert found.rho.mean == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.pearson == pytest.approx(stats.pearsonr(x, y).statistic)
    assert (found.pairs, found.groups) == (60, 60)


def test_the_interval_is_scipys_bootstrap_where_every_prompt_has_one_pair():
    rng = np.random.default_rng(2)
    x = rng.normal(size=80)
    y = x + rng.normal(size=80)
    found = association(x, y, range(80), rounds=2000).rho
    theirs = stats.bootstrap(
        (x, y), spearman, paired=True, vectorized=False, n_resamples=2000, method="percentile", random_state=0
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.025)


def test_prompts_are_resampled_with_all_their_pairs():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=40), rng.normal(size=40)
    alone = association(x, y, range(40)).rho
    # Every pair nine times: nothing new is known.
    many = association(np.repeat(x, 9), np.repeat(y, 9), np.repeat(np.arange(40), 9)).rho
    fooled = association(np.repeat(x, 9), np.repeat(y, 9), range(360)).rho
    assert many.high - many.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert fooled.high - fooled.low < 0.5 * (many.high - many.low)


def test_a_measure_that_is_the_same_everywhere_is_refused():
    with pytest.raises(SettingError, match="the same for every pair"):
        association([1, 1, 1, 1], [1, 2, 3, 4], range(4))
    with pytest.raises(SettingError, match="3 or more"):
        association([1, 2, 3, 4], [1, 2, 3, 4], [0, 0, 1, 1])


def test_a_difference_between_sides_is_scipys():
    rng = np.random.default_rng(4)
    values, inside = rng.normal(size=200), np.arange(200) % 4 == 0
    values[inside] += 1
    found = difference_of(values, inside, range(200), rounds=4000)
    assert found.mean == pytest.approx(values[inside].mean() - values[~inside].mean())
    t = stats.ttest_ind(values[inside], values[~inside], equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx((t.low, t.high), abs=0.05)
    assert np.isnan(difference_of([1.0, 2.0], [True, True], [0, 1]).mean)


def test_a_verdict_needs_the_whole_interval_on_one_side():
    assert verdict(Interval(0.3, 0.1, 0.5), +1) == CONFIRMED
    assert verdict(Interval(0.3, 0.1, 0.5), -1) == REFUTED
    assert verdict(Interval(-0.3, -0.5, -0.1), -1) == CONFIRMED
    assert verdict(Interval(-0.3, -0.5, -0.1), +1) == REFUTED
    for held in (Interval(0.3, -0.01, 0.6), Interval(0.1, 0.0, 0.2), Interval(*[float("nan")] * 3)):
        assert verdict(held, +1) == NOT_SEEN


def test_bands_are_quantiles_and_ties_stay_together():
    assert band_of(np.random.default_rng(0).permutation(100).astype(float)).tolist().count(3) == 20
    assert band_of([5, 1, 3, 2, 4]).tolist() == [4, 0, 2, 1, 3]
    assert band_of([1] * 10).tolist() == [0] * 10
    # Three are smaller than the sixes: 30 % begins the second band of 0, 30, 100.
    assert band_of([1, 2, 3, 6, 6, 6, 6, 6, 6, 9], (0, 30, 100)).tolist() == [0, 0, 0] + [1] * 7
    assert band_of([1, 1, 1, 1, 1, 1, 1, 2, 2, 2]).tolist() == [0] * 7 + [3] * 3
    assert band_names((0, 50, 100)) == ["0-50 %", "50-100 %"]
    with pytest.raises(SettingError, match="rise from 0 to 100"):
        band_of([1, 2], (0, 50))
    with pytest.raises(SettingError, match="no numbers"):
        band_of([1, float("nan")])


def test_votes_by_band_count_what_was_planted():
    # Of ten pairs the two nearest are ties, the two farthest are the student's, the rest the teacher's.
    outcome = [0, 0, -1, -1, -1, -1, -1, -1, 1, 1]
    bands = votes_by_band(list(range(10)), outcome, list(range(10)))
    assert [b.pairs for b in bands] == [2] * 5
    assert [b.student.mean for b in bands] == [0, 0, 0, 0, 1]
    assert [b.tie.mean for b in bands] == [1, 0, 0, 0, 0]
    assert [b.teacher.mean for b in bands] == [0, 1, 1, 1, 0]
    assert np.isnan(bands[0].among_clear.mean)
    assert bands[4].among_clear.mean == 1


def test_the_area_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(5)
    scores, wins = rng.integers(0, 8, 50).astype(float), (rng.random(50) < 0.4).astype(float)
    by_hand = np.mean([(a > b) + (a == b) / 2 for a in scores[wins == 1] for b in scores[wins == 0]])
    assert area_under_curve(scores, wins > 0) == pytest.approx(by_hand)
    assert area_under_curve(scores, wins > 0) == pytest.approx(
        decision_accuracy(scores.tolist(), (wins > 0).tolist())["auc"]
    )
    perfect = area(wins, wins, np.arange(50))
    assert (perfect.mean, perfect.low, perfect.high) == (0.5, 0.5, 0.5)
    nothing = area(np.zeros(50), wins, np.arange(50))
    assert (nothing.mean, nothing.low, nothing.high) == (0, 0, 0)
