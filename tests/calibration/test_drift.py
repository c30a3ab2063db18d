import json

import numpy as np
import pytest
from scipy import special, stats

from allaprima.calibration.drift import DriftMonitor
from allaprima.calibration.threshold import threshold_for
from allaprima.calibration.uncertainty import rank
from allaprima.core.errors import CalibrationError, SettingError


def alarms(share: float, n: int, alpha: float, runs: int, pictures: int, seed: int = 0, ties: bool = False) -> float:
    """How often it alarms when nothing changed, the threshold of n held-out scores included."""
    rng = np.random.default_rng(seed)
    count = 0
    for _ in range(runs):
        scores, live = rng.normal(size=n), rng.normal(size=pictures)
        if ties:
            scores, live = scores.round(), live.round()
        tau = threshold_for(scores, share)
        count += DriftMonitor(float((scores < tau).mean()), n, alpha).update(live < tau)
    return count / runs


@pytest.mark.parametrize(("share", "n"), [(0.5, 500), (0.2, 50)])
def test_it_rarely_alarms_when_nothing_changed(share, n):
    rate = alarms(share, n, 0.1, 1000, 2500)
    assert rate <= stats.binom.ppf(0.999, 1000, 0.1) / 1000
    # Ville's bound is not reached by far, but a monitor that never alarms would be no test either.
    assert rate >= 0.005


def test_ties_do_not_make_it_alarm():
    assert alarms(0.5, 500, 0.1, 200, 2000, ties=True) <= stats.binom.ppf(0.999, 200, 0.1) / 200


def delays(before: int, share: float, runs: int = 200) -> np.ndarray:
    """Pictures from the change of the share, .5 to `share`, to the alarm at alpha = .01; 500 held-out scores."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(runs):
        q = rng.beta(rank(0.5, 500), 501 - rank(0.5, 500))
        monitor = DriftMonitor(0.5, 500, 0.01)
        monitor.update(np.concatenate([rng.uniform(size=before) < q, rng.uniform(size=1500) < share]))
        found.append(np.inf if monitor.alarm_at is None else monitor.alarm_at - before)
    return np.array(found)


@pytest.mark.parametrize(("before", "pictures"), [(0, 600), (3000, 800)])
def test_a_share_of_65_for_50_percent_is_found(before, pictures):
    found = delays(before, 0.65)
    assert (found <= pictures).mean() > 0.95
    assert (found > 0).mean() > 0.97


def test_the_evidence_is_the_formula():
    x = np.random.default_rng(2).uniform(size=250) < 0.3
    monitor = DriftMonitor(0.4, 80)
    monitor.update(x)
    k = rank(0.4, 80)

    def log_p(part: np.ndarray, a: float, b: float) -> float:
        return special.betaln(a + part.sum(), b + len(part) - part.sum()) - special.betaln(a, b)

    total = 1 - 0.5 - 0.25 - 0.5 / 6
    for start, weight in ((0, 0.5), (100, 0.25), (200, 0.5 / 6)):
        past, after = x[:start], x[start:]
        null = log_p(after, k + past.sum(), 81 - k + start - past.sum())
        total += weight * np.exp(log_p(after, 1, 1) - null)
    assert monitor.evidence == pytest.approx(total)


def test_the_evidence_has_mean_1_while_nothing_changed():
    # Exactly: over every number fallen short of 60, each with its beta-binomial probability.
    k, mean = rank(0.5, 20), 0.0
    for fallen in range(61):
        monitor = DriftMonitor(0.5, 20)
        monitor.update([1] * fallen + [0] * (60 - fallen))
        mean += monitor.evidence * stats.betabinom.pmf(fallen, 60, k, 21 - k)
    assert mean == pytest.approx(1)


def test_calls_may_be_split_and_a_run_resumed():
    x = np.random.default_rng(4).uniform(size=730) < 0.8
    whole = DriftMonitor(0.5, 500)
    assert whole.update(x)
    one = DriftMonitor(0.5, 500)
    for v in x[:150]:
        one.update(bool(v))
    one = DriftMonitor.from_state(json.loads(json.dumps(one.state_dict())))
    one.update(x[150:].astype(int).tolist())
    assert one.alarm_at == whole.alarm_at
    assert one.evidence == pytest.approx(whole.evidence)
    assert one.pictures == 730
    assert one.fallen == x.sum()


def test_it_says_what_it_saw():
    monitor = DriftMonitor(0.5, 500)
    assert "no drift" in monitor.message()
    monitor.update([0, 1] * 500)
    assert not monitor.alarm
    assert "50.0% of 1000" in monitor.message()
    monitor.update(np.ones(400, dtype=bool))
    assert monitor.alarm
    assert 1000 < (monitor.alarm_at or 0) < 1100
    assert "100.0% since picture 1000" in monitor.message()
    assert "calibrate" in monitor.message()


def test_long_runs_stay_small():
    monitor = DriftMonitor(0.5, 500)
    monitor.update(np.tile([0, 1], 12_500))
    assert len(monitor.state_dict()["starts"]) <= 201
    assert not monitor.alarm
    assert monitor.evidence <= 1


def test_bad_input_is_named():
    for args in ((1.1, 500), (0.5, 1), (0.5, 500, 0.0)):
        with pytest.raises(SettingError, match="calibrated_share="):
            DriftMonitor(*args)
    with pytest.raises(SettingError, match="true or false"):
        DriftMonitor(0.5, 500).update([0, 2])
    with pytest.raises(CalibrationError, match="not a drift monitor"):
        DriftMonitor.from_state({"share": 0.5})
