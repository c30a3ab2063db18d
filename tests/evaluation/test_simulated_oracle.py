"""Simulated oracles against brute force and closed form: the random choice at .5, the perfect oracle at 1."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allaprima.core.errors import SettingError
from allaprima.evaluation.simulated_oracle import (
    full_reference,
    oracle_keys,
    perfect_oracle,
    random_choice,
    simulated_oracle,
)

RNG = np.random.default_rng(0)
STUDENT = RNG.normal(size=400)
# Gains depend on the draft, are skewed, and a third of them harm: nothing here is symmetric by luck.
TEACHER = STUDENT + 0.4 - 0.5 * STUDENT + RNG.exponential(0.7, 400) - 0.6
SHARES = (0.1, 0.3, 0.5, 0.8)
QUALITIES = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=1, max_size=8)


def subsets(student, teacher, sizes):
    """Mean quality of every choice of so many pictures."""
    index = range(len(student))
    return [
        np.mean([teacher[i] if i in chosen else student[i] for i in index])
        for m in sizes
        for chosen in map(set, combinations(index, m))
    ]


@given(QUALITIES, st.floats(0, 1))
def test_bounds_are_those_of_brute_force(pairs, share):
    student, teacher = [float(s) for s, _ in pairs], [float(t) for _, t in pairs]
    m = round(share * len(pairs))
    exact = subsets(student, teacher, [m])
    assert perfect_oracle(student, teacher, share) == pytest.approx(max(exact))
    assert perfect_oracle(student, teacher, share, spend_all=False) == pytest.approx(
        max(subsets(student, teacher, range(m + 1)))
    )
    assert random_choice(student, teacher, share).mean == pytest.approx(np.mean(exact))


def test_the_random_choices_interval_is_that_of_every_subset():
    student, teacher = STUDENT[:10], TEACHER[:10]
    found = random_choice(student, teacher, 0.4)
    assert (found.high - found.low) / 2 / 1.959964 == pytest.approx(np.std(subsets(student, teacher, [4])), rel=1e-6)


@pytest.mark.parametrize("knows", ["gain", "sign"])
@pytest.mark.parametrize("share", SHARES)
def test_a_coin_is_the_random_choice(knows, share):
    rounds = 2000
    (point,) = simulated_oracle(STUDENT, TEACHER, share, [0.5], knows, rounds)
    truth = random_choice(STUDENT, TEACHER, share)
    error = (truth.high - truth.mean) / 1.96 / rounds**0.5
    assert abs(point.quality.mean - truth.mean) < 4 * error
    # The spread too: the choice is random, not only its mean.
    assert point.quality.high - point.quality.low == pytest.approx(truth.high - truth.low, rel=0.1)


@pytest.mark.parametrize("share", SHARES)
def test_always_right_is_the_perfect_oracle(share):
    (point,) = simulated_oracle(STUDENT, TEACHER, share, [1.0], rounds=20)
    assert point.quality.mean == pytest.approx(perfect_oracle(STUDENT, TEACHER, share), abs=1e-12)
    assert point.quality.low == pytest.approx(point.quality.high)


@pytest.mark.parametrize("knows", ["gain", "sign"])
@pytest.mark.parametrize("share", SHARES)
def test_quality_grows_with_accuracy(knows, share):
    curve = [p.quality.mean for p in simulated_oracle(STUDENT, TEACHER, share, knows=knows)]
    assert len(curve) == 11
    assert (np.diff(curve) > 0).all()
    assert curve[-1] <= perfect_oracle(STUDENT, TEACHER, share) + 1e-12


def test_knowing_only_signs_has_a_closed_form_when_always_right():
    gain = TEACHER - STUDENT
    better = gain > 0
    (few,) = simulated_oracle(STUDENT, TEACHER, 0.3, [1.0], "sign", 2000)
    assert 0.3 < better.mean() < 0.8
    assert few.quality.mean == pytest.approx(STUDENT.mean() + 0.3 * gain[better].mean(), abs=2e-3)
    (many,) = simulated_oracle(STUDENT, TEACHER, 0.8, [1.0], "sign", 2000)
    rest = 0.8 - better.mean()
    truth = STUDENT.mean() + better.mean() * gain[better].mean() + rest * gain[~better].mean()
    assert many.quality.mean == pytest.approx(truth, abs=2e-3)


@pytest.mark.parametrize("knows", ["gain", "sign"])
@pytest.mark.parametrize("accuracy", [0.5, 0.7, 0.9, 1.0])
def test_preferences_are_right_as_often_as_asked(knows, accuracy):
    gain = TEACHER - STUDENT
    keys = oracle_keys(gain, accuracy, knows, 500, np.random.default_rng(1))
    right = (keys > 0) == (gain > 0)
    assert right.mean() == pytest.approx(accuracy, abs=0.004)
    # As often for pictures the teacher improves as for those it harms, whatever the share of either.
    assert right[:, gain > 0].mean() == pytest.approx(accuracy, abs=0.006)
    assert right[:, gain <= 0].mean() == pytest.approx(accuracy, abs=0.006)


def test_equal_keys_are_taken_in_random_order():
    # All gains equal but one: a biased order of ties would always or never take it.
    teacher = np.ones(10)
    teacher[0] = 3.0
    (point,) = simulated_oracle(np.zeros(10), teacher, 0.5, [0.5], "sign", 4000)
    assert point.quality.mean == pytest.approx(random_choice(np.zeros(10), teacher, 0.5).mean, abs=0.01)


def test_the_full_reference_escalates_the_farthest():
    student, teacher = [0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 4.0, 8.0]
    assert full_reference(student, teacher, [3, 1, 2, 0], 0.5) == 5 / 4
    gain = TEACHER - STUDENT
    assert full_reference(STUDENT, TEACHER, gain, 0.3) == pytest.approx(perfect_oracle(STUDENT, TEACHER, 0.3))


def test_bad_input_is_named():
    with pytest.raises(SettingError, match=r"share=1\.2"):
        perfect_oracle([0.0], [1.0], 1.2)
    with pytest.raises(SettingError, match=r"accuracy=0\.4"):
        simulated_oracle([0.0], [1.0], 0.5, [0.4])
    with pytest.raises(SettingError, match="knows='all'"):
        simulated_oracle([0.0], [1.0], 0.5, [0.6], "all")
    with pytest.raises(SettingError, match="two finite numbers"):
        random_choice([0.0], [float("nan")], 0.5)
    with pytest.raises(SettingError, match="distances"):
        full_reference([0.0], [1.0], [1.0, 2.0], 0.5)
    with pytest.raises(SettingError, match="rounds=0"):
        simulated_oracle([0.0], [1.0], 0.5, rounds=0)
