import math

import numpy as np
import pytest
from scipy import stats

from allaprima.calibration.risk import accepted_risk, expected_risk, p_values, sure_risk
from allaprima.core.errors import SettingError

RUNS = 1000


def drafts(rng, n):
    """Scores uniform in 0..1; the teacher would have been better with probability 1 - score."""
    s = rng.uniform(size=n)
    return s, (rng.uniform(size=n) < 1 - s).astype(float)


def true_risk(tau: float) -> float:
    """E[loss 1(score >= tau)] of `drafts`: the integral of 1 - s from tau."""
    return (1 - min(max(tau, 0.0), 1.0)) ** 2 / 2


def true_accepted_risk(tau: float) -> float:
    return (1 - min(max(tau, 0.0), 1.0)) / 2


def most(delta: float) -> float:
    """Breaches of 1,000 that a rate of delta exceeds once in 1,000 test runs."""
    return float(stats.binom.ppf(0.999, RUNS, delta)) / RUNS


def simulated(control, risk, n, seed=0, **kw) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.array([risk(control(*drafts(rng, n), **kw).threshold) for _ in range(RUNS)])


def test_conformal_risk_control_holds_in_expectation_and_is_tight():
    risks = simulated(expected_risk, true_risk, 200, alpha=0.1)
    assert risks.mean() <= 0.1 + 3 * risks.std() / RUNS**0.5
    # The method loses at most 2 / (n + 1) (theorem 2 of the paper).
    assert risks.mean() >= 0.1 - 2 / 201 - 3 * risks.std() / RUNS**0.5
    # It promises no more than the mean: single calibrations are above alpha about as often as not.
    assert 0.3 < (risks > 0.1).mean() < 0.6


@pytest.mark.parametrize("delta", [0.05, 0.2])
def test_the_sure_threshold_breaks_its_promise_no_more_than_delta(delta):
    risks = simulated(sure_risk, true_risk, 200, alpha=0.1, delta=delta)
    assert (risks > 0.1).mean() <= most(delta)
    assert (risks > 0.1).mean() >= delta / 3
    assert risks.mean() > 0.05


@pytest.mark.parametrize("delta", [0.05, 0.2])
def test_among_the_accepted(delta):
    risks = simulated(accepted_risk, true_accepted_risk, 600, alpha=0.2, delta=delta)
    assert (risks > 0.2).mean() <= most(delta)
    assert risks.mean() > 0.1


def test_among_the_accepted_with_a_grid_of_others():
    grid = np.linspace(0, 0.8, 41)
    risks = simulated(accepted_risk, true_accepted_risk, 400, alpha=0.2, delta=0.1, grid=grid)
    assert (risks > 0.2).mean() <= most(0.1)
    assert risks.mean() > 0.12


def test_a_loss_between_0_and_the_bound():
    rng = np.random.default_rng(1)

    def risk(control, **kw):
        s = rng.uniform(size=300)
        return true_risk(control(s, 3 * (1 - s) * rng.beta(2, 2, 300) * 2 / 3, alpha=0.2, bound=3.0, **kw).threshold) * 2

    # The loss has mean 1 - s: alpha .2 of the loss is .2 of true_risk.
    sure = np.array([risk(sure_risk, delta=0.1) / 2 for _ in range(300)])
    mean = np.array([risk(expected_risk) / 2 for _ in range(300)])
    assert (sure > 0.2).mean() <= 0.1
    assert sure.mean() > 0.1
    assert mean.mean() <= 0.2 + 3 * mean.std() / 300**0.5
    assert mean.mean() > 0.17


def test_a_worthless_oracle_is_found_out():
    # Losses of .3 whatever the score: no threshold makes the accepted better than .3.
    rng = np.random.default_rng(2)
    made = [accepted_risk(rng.uniform(size=400), (rng.uniform(size=400) < 0.3).astype(float), 0.2, 0.1) for _ in range(300)]
    wrong = np.mean([math.isfinite(m.threshold) for m in made])
    assert wrong <= stats.binom.ppf(0.999, 300, 0.1) / 300
    # Over all drafts a small alpha is possible: accept few.
    assert 0 < sure_risk(rng.uniform(size=400), np.ones(400), 0.2, 0.1).accepted < 0.2


def test_it_stops_at_the_first_threshold_it_cannot_vouch_for():
    # The highest scores are the worst: lower thresholds look fine by themselves, but come after a failure.
    s = np.linspace(1, 0, 1000)
    losses = (s > 0.9).astype(float)
    assert p_values(np.array([100.0]), np.array([1000]), 0.2, True)[0] < 1e-9
    assert accepted_risk(s, losses, 0.2, 0.1).threshold == math.inf
    assert accepted_risk(s, losses, 0.2, 0.1, grid=[0.0, 0.1]).threshold == 0.0


def test_the_smallest_threshold_by_brute_force():
    rng = np.random.default_rng(3)
    for _ in range(50):
        s, y = rng.uniform(size=60).round(1), (rng.uniform(size=60) < 0.3).astype(float)
        options = [-math.inf, *np.nextafter(np.unique(s), math.inf)]
        fine = [t for t in options if (60 / 61) * (y * (s >= t)).mean() + 1 / 61 <= 0.12]
        assert expected_risk(s, y, 0.12).threshold == min(fine)
        fine = [t for t in options if stats.beta.ppf(0.9, (y * (s >= t)).sum() + 1, 60 - (y * (s >= t)).sum()) <= 0.12]
        # Clopper and Pearson's upper end at confidence 1 - delta.
        assert sure_risk(s, y, 0.12, 0.1).threshold == min(fine, default=math.inf)


def test_what_cannot_be_promised_accepts_nothing_and_what_costs_nothing_accepts_all():
    s = np.linspace(0, 1, 20)
    for made in (expected_risk(s, np.zeros(20), 0.01), sure_risk(s, np.zeros(20), 0.01), accepted_risk(s, np.ones(20), 0.3)):
        assert (made.threshold, made.accepted, made.loss) == (math.inf, 0, 0)
    s = np.linspace(0, 1, 400)
    assert expected_risk(s, np.zeros(400), 0.1).threshold == -math.inf
    assert sure_risk(s, np.zeros(400), 0.1).threshold == -math.inf
    assert accepted_risk(s, np.zeros(400), 0.1).accepted > 0.98


@pytest.mark.parametrize("binary", [True, False])
def test_p_values_are_rarely_small_where_the_mean_is_alpha(binary):
    rng = np.random.default_rng(4)
    losses = (rng.uniform(size=(20_000, 50)) < 0.2) if binary else rng.beta(0.5, 2, (20_000, 50))
    p = p_values(losses.sum(1).astype(float), np.full(20_000, 50), 0.2, binary)
    for level in (0.01, 0.1, 0.3):
        assert (p <= level).mean() <= level + 3 * (level / 20_000) ** 0.5
    assert (p <= 0.3).mean() > (0.1 if binary else 0)


def test_bad_input_is_named():
    s, y = [0.1, 0.2, 0.3], [0.0, 1.0, 0.0]
    for wrong, match in (
        (lambda: expected_risk(s, y[:2], 0.1), "one loss a score"),
        (lambda: expected_risk([0.1, math.nan, 0.2], y, 0.1), "numbers"),
        (lambda: expected_risk(s, [0, 2, 0], 0.1), "raise bound"),
        (lambda: sure_risk(s, y, 0), "alpha=0"),
        (lambda: accepted_risk(s, y, 0.1, delta=1), "delta=1"),
    ):
        with pytest.raises(SettingError, match=match):
            wrong()
