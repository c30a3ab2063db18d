"""Intervals cover the truth as often as they say, and pictures of one prompt don't count as many."""

import math

import numpy as np
import pytest

from allaprima.core.errors import SettingError
from allaprima.evaluation.intervals import by_group, mean_interval, t_interval


def test_means_are_taken_by_group_first():
    assert by_group([1, 3, 10], [7, 7, 2]).tolist() == [10.0, 2.0]
    assert mean_interval([1, 3, 10], [7, 7, 2]).mean == 6.0
    with pytest.raises(SettingError, match="one group a value"):
        by_group([1, 2], [1])


def coverage(interval, truth, rounds=300):
    return sum(i.low <= truth <= i.high for i in map(interval, range(rounds))) / rounds


def test_the_bootstrap_covers_when_prompts_differ():
    def one(seed, groups):
        rng = np.random.default_rng(seed)
        values = np.repeat(rng.normal(size=40), 5) + 0.1 * rng.normal(size=200)
        return mean_interval(values.tolist(), groups, rounds=300)

    by_prompt = np.repeat(np.arange(40), 5).tolist()
    assert 0.89 <= coverage(lambda s: one(s, by_prompt), 0.0) <= 0.985
    # Negative control: taking every picture for a prompt of its own pretends to five times the evidence.
    assert coverage(lambda s: one(s, list(range(200))), 0.0) < 0.75


def test_students_t_covers_with_three_repeats():
    found = coverage(lambda s: t_interval(np.random.default_rng(s).normal(2.0, 1.0, 3).tolist()), 2.0, 600)
    assert 0.92 <= found <= 0.975
    assert math.isnan(t_interval([1.0]).low)
