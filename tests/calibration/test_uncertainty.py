import numpy as np
import pytest
from scipy import stats

from allaprima.calibration.budget import Prices
from allaprima.calibration.threshold import threshold_for
from allaprima.calibration.uncertainty import (
    bootstrap,
    chance_within,
    convergence_table,
    exact_interval,
    prompts_needed,
    rank,
    ties_at,
    warning_for,
)
from allaprima.core.errors import SettingError

PAPER = Prices.from_steps(5, 20)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("n", [2, 7, 100, 101])
def test_rank_is_the_thresholds(n, share):
    assert threshold_for(np.arange(1.0, n + 1), share) == rank(share, n)


def realised(n: int, share: float, rounds: int, seed: int) -> np.ndarray:
    """Shares of all drafts below thresholds of n uniform scores: for these the share is the threshold itself."""
    scores = np.sort(np.random.default_rng(seed).uniform(size=(rounds, n)), axis=1)
    return scores[:, rank(share, n) - 1]


def test_the_beta_law_is_what_happens():
    k, n = rank(0.3, 200), 200
    assert stats.kstest(realised(n, 0.3, 2000, 0), stats.beta(k, n + 1 - k).cdf).pvalue > 0.01
    costs = PAPER.mean(1) * realised(500, 0.5, 2000, 1) + PAPER.mean(0) * (1 - realised(500, 0.5, 2000, 1))
    hits = (np.abs(costs / 15 - 1) <= 0.03).mean()
    # The finding: a fixed threshold of 500 prompts is within 3 % in 69 % of calibrations, not in 95 %.
    assert chance_within(500, 0.5, PAPER, 0.03) == pytest.approx(0.6857, abs=1e-4)
    assert hits == pytest.approx(chance_within(500, 0.5, PAPER, 0.03), abs=0.035)


@pytest.mark.parametrize("pictures", [None, 300])
def test_the_bootstrap_agrees_with_the_exact_law(pictures):
    scores = np.random.default_rng(0).lognormal(size=3000)
    exact, boot = (f(scores, 0.4, PAPER, pictures=pictures) for f in (exact_interval, bootstrap))
    assert boot.threshold == exact.threshold == threshold_for(scores, 0.4)
    assert boot.cost == pytest.approx(exact.cost, abs=0.03)
    assert boot.cost_interval == pytest.approx(exact.cost_interval, abs=0.08)
    assert boot.threshold_interval == pytest.approx(exact.threshold_interval, abs=0.01)


def test_the_bootstrap_without_sorting_is_the_bootstrap():
    # Ties and few scores, where a shortcut would show; truth is resampling by hand.
    rng = np.random.default_rng(3)
    scores = np.round(rng.normal(size=40), 1)
    draws = np.sort(rng.choice(scores, (20_000, 40)), axis=1)[:, rank(0.6, 40) - 1]
    costs = PAPER.mean(1) * (scores < draws[:, None]).mean(1) + PAPER.mean(0) * (scores >= draws[:, None]).mean(1)
    made = bootstrap(scores, 0.6, PAPER, level=0.9, rounds=20_000)
    assert made.threshold_interval == pytest.approx(np.quantile(draws, [0.05, 0.95]), abs=1e-9)
    assert made.cost_interval == pytest.approx(np.quantile(costs, [0.05, 0.95]), abs=1e-9)
    assert made.cost == pytest.approx(costs.mean(), abs=0.03)


@pytest.mark.parametrize("make", [exact_interval, bootstrap])
def test_intervals_cover_as_often_as_they_say(make):
    rng = np.random.default_rng(5)
    hits = np.zeros(2)
    for _ in range(300):
        scores = rng.uniform(size=150)
        made = make(scores, 0.3, PAPER, level=0.9, pictures=400)
        low, high = made.threshold_interval
        spent = PAPER.mean((rng.uniform(size=400) < made.threshold).mean())
        hits += low <= 0.3 <= high, made.cost_interval[0] <= spent <= made.cost_interval[1]
    # Order statistics are a little wide by design; the cost's law is exact up to one picture in 400.
    assert hits / 300 == pytest.approx(0.91, abs=0.04)


def test_an_end_beyond_the_scores_is_infinite():
    made = exact_interval([0.1, 0.2, 0.3], 0.5, PAPER)
    assert made.threshold_interval == (-np.inf, np.inf)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("pictures", [None, 4000])
def test_prompts_needed_are_enough_and_not_more(share, pictures):
    tolerance = 0.06
    n = prompts_needed(share, PAPER, tolerance, 0.9, pictures)
    chances = [chance_within(m, share, PAPER, tolerance, pictures) for m in range(max(n - 1, 2), n + 250, 3)]
    assert chances[0] < 0.9
    assert min(chances[1:]) >= 0.9


def test_prompts_needed_for_the_papers_budget():
    assert prompts_needed(0.5, PAPER, 0.03, 0.95) == 1895
    assert prompts_needed(0.5, PAPER, 0.03, 0.95, pictures=10_000) > 1895
    assert chance_within(1895, 0.5, PAPER, 0.03, pictures=10**7) == pytest.approx(0.95, abs=0.001)
    with pytest.raises(SettingError, match="500 pictures"):
        prompts_needed(0.5, PAPER, 0.03, 0.95, pictures=500)
    with pytest.raises(SettingError, match="tolerance=0"):
        prompts_needed(0.5, PAPER, 0)


def test_warnings_name_what_is_wrong():
    scores = np.random.default_rng(0).normal(size=2000)
    assert warning_for(scores, 0.5, PAPER) is None
    few = warning_for(scores[:500], 0.5, PAPER)
    assert few is not None
    assert "500 prompts are few" in few
    assert "0.69" in few
    assert "1895 prompts" in few
    tied = warning_for(np.round(scores), 0.5, PAPER)
    assert tied is not None
    below, through = ties_at(np.round(scores), 0.5)
    assert (below, through) == ((np.round(scores) < 0).mean(), (np.round(scores) <= 0).mean())
    assert f"{through - below:.0%} of the scores equal" in tied
    assert "more than 1000000 prompts" in (warning_for(scores, 0.5, PAPER, tolerance=1e-5) or "")


def test_the_convergence_table():
    scores = np.random.default_rng(1).normal(size=4000)
    rows = convergence_table(scores, 0.5, PAPER, 0.3, sizes=(50, 500, 4000, 25_000), rounds=4000)
    assert [r.seconds for r in rows] == pytest.approx([15, 150, 1200, 7500])
    assert [r.extrapolated for r in rows] == [False, False, False, True]
    for row in rows[:3]:
        # Normal scores: the median's standard deviation is sqrt(pi / 2 n); the cost's interval is the Beta law's.
        assert row.threshold_sd == pytest.approx((np.pi / 2 / row.prompts) ** 0.5, rel=0.12)
        law = stats.beta(rank(0.5, row.prompts), row.prompts + 1 - rank(0.5, row.prompts))
        assert row.cost_interval == pytest.approx([PAPER.mean(x) for x in law.ppf([0.025, 0.975])], abs=0.15)
    last = rows[3]
    assert (last.threshold, last.threshold_sd, last.threshold_interval) == (None, None, None)
    assert last.cost_interval == pytest.approx([15 - 1.96 * 10 / 25_000**0.5, 15 + 1.96 * 10 / 25_000**0.5], abs=0.002)
