"""Calibration of scores to win probabilities, against simulated truth, brute force and scipy."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.special import expit, logit

from allaprima.core.errors import CalibrationError, SettingError
from allaprima.oracles.probability import CalibratedOracle, Isotonic, Logistic

LABELLED = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=12)


def simulated(n, slope, offset, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    scores = scale * rng.normal(0.3, 1.0, n)
    return scores, (rng.random(n) < expit(slope * scores + offset)).astype(float)


@pytest.mark.parametrize(("slope", "offset", "scale"), [(1.5, -0.4, 1.0), (0.5, 2.0, 1.0), (400.0, -1.0, 0.005)])
def test_the_logistic_recovers_the_truth(slope, offset, scale):
    scores, wins = simulated(40_000, slope, offset, scale=scale)
    found = Logistic.fit(scores, wins)
    assert found.slope == pytest.approx(slope, rel=0.05)
    assert found.offset == pytest.approx(offset, abs=0.05)


def test_the_temperature_alone_is_recovered():
    scores, wins = simulated(40_000, 1 / 2.5, 0.0)
    found = Logistic.fit(scores, wins, offset=False)
    assert 1 / found.slope == pytest.approx(2.5, rel=0.05)
    assert found.offset == 0.0


def test_shares_of_votes_are_labels_too():
    scores = np.linspace(-3, 3, 4001)
    found = Logistic.fit(scores, expit(1.2 * scores - 0.3))
    # Platt's targets pull by about 1 / n.
    assert (found.slope, found.offset) == pytest.approx((1.2, -0.3), abs=5e-3)


def test_scores_that_part_wins_from_losses_leave_a_finite_slope():
    found = Logistic.fit([0.1, 0.2, 0.3, 0.7, 0.8, 0.9], [0, 0, 0, 1, 1, 1])
    p = found(np.array([0.1, 0.9]))
    # Never surer than Platt's targets, 1/5 and 4/5, allow on average.
    assert 0.05 < p[0] < 0.25
    assert 0.75 < p[1] < 0.95


def test_a_score_that_points_the_wrong_way_is_refused():
    scores, wins = simulated(2000, 1.0, 0.0)
    with pytest.raises(CalibrationError, match="does not rise"):
        Logistic.fit(-scores, wins)
    with pytest.raises(SettingError, match="all 2 scores are"):
        Logistic.fit([0.5, 0.5], [0, 1])


@given(LABELLED)
def test_isotonic_regression_is_the_min_max_of_block_means(pairs):
    scores, wins = np.array([float(s) for s, _ in pairs]), np.array([float(w) for _, w in pairs])
    found = Isotonic.fit(scores, wins)(np.unique(scores))
    x = np.unique(scores)
    # Brunk's formula: the largest over starts of the smallest over ends of the mean label between them.
    truth = [max(min(wins[(scores >= a) & (scores <= b)].mean() for b in x if b >= v) for a in x if a <= v) for v in x]
    assert found == pytest.approx(np.array(truth))


@given(LABELLED, st.lists(st.floats(-6, 6), min_size=2, max_size=10))
def test_both_rise_with_the_score(pairs, points):
    scores, wins = [float(s) for s, _ in pairs], [float(w) for _, w in pairs]
    x = np.sort(np.asarray(points))
    p = Isotonic.fit(scores, wins)(x)
    assert (np.diff(p) >= 0).all()
    assert (p >= 0).all()
    assert (p <= 1).all()
    try:
        fitted = Logistic.fit(scores, wins)
    except (CalibrationError, SettingError):
        assume(False)
        raise
    assert (np.diff(fitted(x)) >= 0).all()
    apart = np.diff(x) > 1e-3
    inside = np.abs(fitted.slope * x + fitted.offset)[:-1] < 20
    assert fitted.slope < 1e-6 or (np.diff(fitted(x))[apart & inside] > 0).all()


def calibration_error(p, wins, bins=10):
    """`sum_b n_b / n |observed_b - predicted_b|` over equal-width bins (arXiv 1706.04599, equation 3)."""
    index = np.minimum((p * bins).astype(int), bins - 1)
    return sum(abs((wins - p)[index == b].sum()) for b in range(bins)) / len(p)


def brier_score(p, wins):
    return np.square(p - wins).mean()


def log_loss(p, wins):
    p = p.clip(1e-6, 1 - 1e-6)
    return -(wins * np.log(p) + (1 - wins) * np.log(1 - p)).mean()


def overconfident(n, seed):
    """Probabilities three times too sure (in logits) and the labels."""
    scores, wins = simulated(n, 1.0, 0.0, seed)
    return expit(3 * scores + 0.5), wins


@pytest.mark.parametrize("fit", [lambda s, w: Logistic.fit(logit(s), w), Isotonic.fit])
def test_the_error_falls_on_unseen_scores(fit):
    (p, wins), (q, truth) = overconfident(5000, 1), overconfident(5000, 2)
    fitted = fit(p, wins)
    after = fitted(logit(q)) if isinstance(fitted, Logistic) else fitted(q)
    assert calibration_error(q, truth) > 0.15
    assert calibration_error(after, truth) < 0.03
    assert brier_score(after, truth) < brier_score(q, truth) - 0.03
    assert log_loss(after, truth) < log_loss(q, truth) - 0.2


class Brightness:
    name, fingerprint, cost = "brightness", "abc", 0.2

    def score(self, images, prompts):
        return images.mean((1, 2, 3))


LEVELS = torch.linspace(0, 1, 41)
IMAGES = LEVELS[:, None, None, None].expand(-1, 3, 2, 2)
LOGISTIC = Logistic(3.0, -1.0)
ISOTONIC = Isotonic((0.0, 0.3, 0.4, 0.7, 0.8, 1.0), (0.1, 0.1, 0.5, 0.5, 0.9, 0.9))


def test_decisions_do_not_change():
    inner, outer = Brightness(), CalibratedOracle(Brightness(), LOGISTIC)
    scores, p = inner.score(IMAGES, []).double(), outer.score(IMAGES, [])
    for tau in scores:
        assert torch.equal(scores >= tau, p >= outer.threshold(float(tau)))
    assert (outer.cost, outer.name) == (0.2, "brightness, logistic")


def test_a_threshold_inside_an_isotonic_step_accepts_the_whole_step():
    outer = CalibratedOracle(Brightness(), ISOTONIC)
    scores, p = Brightness().score(IMAGES, []).double(), outer.score(IMAGES, [])
    accepted = p >= outer.threshold(0.55)
    assert torch.equal(accepted, scores >= scores[16])  # the step from .4 to .7 begins here
    assert accepted[scores >= 0.55].all()


@pytest.mark.parametrize("calibrator", [LOGISTIC, ISOTONIC])
def test_saved_and_loaded_for_the_same_oracle_only(calibrator, tmp_path):
    oracle = CalibratedOracle(Brightness(), calibrator)
    oracle.save(tmp_path / "c.json")
    again = CalibratedOracle.load(tmp_path / "c.json", Brightness())
    assert again.calibrator == calibrator
    assert again.fingerprint == oracle.fingerprint
    assert torch.equal(again.score(IMAGES, []), oracle.score(IMAGES, []))
    other = Brightness()
    other.fingerprint = "def"
    with pytest.raises(CalibrationError, match="made for oracle 'abc'"):
        CalibratedOracle.load(tmp_path / "c.json", other)
    for text in ("{}", "[]", '{"schema": 1, "oracle": "abc", "kind": "spline"}', "not json"):
        (tmp_path / "broken.json").write_text(text)
        with pytest.raises(CalibrationError, match="cannot be read"):
            CalibratedOracle.load(tmp_path / "broken.json", Brightness())


def test_fingerprints_tell_calibrators_and_oracles_apart():
    other = Brightness()
    other.fingerprint = "def"
    prints = [
        CalibratedOracle(o, c).fingerprint
        for o, c in itertools.product((Brightness(), other), (LOGISTIC, Logistic(3.0, -1.1), ISOTONIC))
    ]
    assert len({*prints, "abc", "def"}) == 8
