"""Decision accuracy against counting by hand, with ties, at every percentile."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allaprima.core.errors import SettingError
from allaprima.evaluation.decision import decision_accuracy, full_reference_right, no_reference_curve

TIED = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=25)


@given(TIED)
def test_no_threshold_parts_equal_scores(pairs):
    scores, wins = [float(s) for s, _ in pairs], [w for _, w in pairs]
    found = decision_accuracy(scores, wins)

    def accuracy(tau):
        return np.mean([(s > tau) == w for s, w in zip(scores, wins, strict=True)])

    assert found["accuracy"] == pytest.approx(max(map(accuracy, [-1.0, *scores])))
    assert accuracy(found["tau"]) == pytest.approx(found["accuracy"])
    order = [1.0 if a > b else 0.5 if a == b else 0.0 for a, w in pairs if w for b, v in pairs if not v]
    assert found["auc"] == pytest.approx(np.mean(order) if order else 0.5)


@given(TIED, st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_the_curve_counts_every_percentile(pairs, percent):
    scores, wins = [float(s) for s, _ in pairs], [w for _, w in pairs]
    curve = no_reference_curve(scores, wins, percent)
    assert curve.percent.tolist() == percent
    for tau, accuracy in zip(curve.threshold, curve.accuracy, strict=True):
        assert accuracy == pytest.approx(np.mean([(s > tau) == w for s, w in zip(scores, wins, strict=True)]))
    assert curve.accuracy.max() <= decision_accuracy(scores, wins)["accuracy"] + 1e-12


def test_k_percent_of_distinct_scores_are_sent_on():
    rng = np.random.default_rng(0)
    scores, wins = rng.normal(size=200), rng.random(200) < 0.4
    curve = no_reference_curve(scores.tolist(), wins.tolist())
    assert [int((scores <= tau).sum()) for tau in curve.threshold] == [2 * k for k in range(101)]
    assert curve.accuracy[0] == pytest.approx(wins.mean())
    assert curve.accuracy[100] == pytest.approx(1 - wins.mean())
    every = no_reference_curve(scores.tolist(), wins.tolist(), np.arange(201) / 2)
    assert every.accuracy[every.best] == pytest.approx(decision_accuracy(scores.tolist(), wins.tolist())["accuracy"])


def test_full_reference_says_teacher_when_equal():
    right = full_reference_right([1.0, 2.0, 3.0, 3.0], [2.0, 1.0, 3.0, 3.0], [False, False, False, True])
    assert right.tolist() == [True, False, True, False]


@pytest.mark.parametrize(("scores", "wins"), [([], []), ([1.0], [True, False]), ([float("nan")], [True])])
def test_bad_input_is_named(scores, wins):
    for call in (decision_accuracy, no_reference_curve, lambda s, w: full_reference_right(s, s, w)):
        with pytest.raises(SettingError, match="one finite score a vote"):
            call(scores, wins)
    with pytest.raises(SettingError, match="percentiles in"):
        no_reference_curve([1.0], [True], [101])
