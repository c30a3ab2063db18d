"""Queueing formulas against closed forms and known values."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allaprima.fleet.queueing import Executor, StageWork, Wait, erlang_c, pool, split, waiting


def erlang_c_by_its_sum(c, a):
    """The textbook's sum, term by term."""
    terms = [a**k / math.factorial(k) for k in range(c)]
    last = a**c / math.factorial(c) * c / (c - a)
    return last / (sum(terms) + last)


@given(st.integers(1, 30), st.floats(0.01, 0.99))
def test_erlang_c_is_the_textbooks_sum(servers, load):
    assert erlang_c(servers, load * servers) == pytest.approx(erlang_c_by_its_sum(servers, load * servers), rel=1e-9)


def test_one_server_waits_as_mm1():
    wait = waiting(1, 0.8, 1.0, 1.0, 1.0)
    assert wait.probability == pytest.approx(0.8)
    assert wait.mean == pytest.approx(0.8 / (1 - 0.8))
    # P(W > t) = rho exp(-(mu - lambda) t)
    assert 0.8 * math.exp(-0.2 * wait.quantile(0.95)) == pytest.approx(0.05)


def test_a_constant_service_waits_half_as_long():
    """Pollaczek-Khinchine: M/D/1 is half of M/M/1."""
    assert waiting(1, 0.8, 1.0, 1.0, 0.0).mean == pytest.approx(0.5 * waiting(1, 0.8, 1.0, 1.0, 1.0).mean)


def test_an_overloaded_queue_waits_for_ever():
    assert waiting(2, 3.0, 1.0, 1.0, 1.0).mean == math.inf
    assert erlang_c(2, 2.0) == 1.0


def test_who_hardly_ever_waits_has_a_quantile_of_nothing():
    assert Wait(0.04, 0.1).quantile(0.95) == 0.0


@given(st.floats(0, 9), st.floats(0, 1))
def test_splitting_brings_a_stream_nearer_to_poisson(cv2, share):
    assert abs(split(cv2, share) - 1) <= abs(cv2 - 1) + 1e-12
    assert split(1.0, share) == pytest.approx(1.0)


def test_a_machine_with_one_stage_has_rounds_of_one_step():
    alone = Executor.of(8, {"teacher": StageWork(1.0, 20, 0.1)})
    assert alone.inside("teacher") == pytest.approx(2.0)
    assert alone.occupied == pytest.approx(2.0 / 8)


def test_a_full_machines_round_is_the_sum_of_its_stages():
    full = Executor.of(8, {"student": StageWork(1e6, 4, 0.1), "teacher": StageWork(1e6, 20, 0.3)})
    assert full.rounds["student"] == pytest.approx(0.4)
    assert full.rounds["teacher"] == pytest.approx(0.4)


@given(st.floats(0.1, 50), st.floats(1.0, 1.5), st.floats(0.0, 1.0))
def test_more_pictures_never_take_less_time(rate, more, share):
    def of(rate):
        works = {
            "student": StageWork(rate, 4, 0.05),
            "teacher": StageWork(rate * share, 20, 0.08),
            "decode": StageWork(rate * share, 1, 0.05),
        }
        return pool(3, 8, works, 1.0, 0.0)

    one, other = of(rate), of(rate * more)
    stages = ["student", "teacher", "decode"]
    assert other.seconds(stages, 0.95) >= one.seconds(stages, 0.95) - 1e-9
    assert other.occupied >= one.occupied - 1e-12
