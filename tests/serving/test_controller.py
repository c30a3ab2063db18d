"""The controller on a clock that the test turns."""

import math

import pytest

from allaprima.cascade.policy import AlwaysPolicy, Context, Decision, ThresholdPolicy
from allaprima.cascade.sequential import SequentialPolicy
from allaprima.core.errors import SettingError
from allaprima.serving.controller import Controller, Objective

AIM = Objective(seconds=10, low=0.4, high=0.8, steps=4, hold=5, window=60, least=3, release=0.7)


def told(controller, now, latencies):
    for latency in latencies:
        controller.observe(now, latency)
    return controller.update(now)


def pushed(to):
    """A controller that was overloaded so many times, the last time at 5 * to."""
    controller = Controller(AIM)
    controller.update(0)
    for k in range(1, to + 1):
        assert told(controller, 5.0 * k, [20] * 3) is not None
    return controller


def test_at_rest_nothing_is_lowered():
    controller = Controller(AIM)
    controller.update(0)
    assert told(controller, 6, [1, 2, 3]) is None
    assert controller.ceiling is None
    policy = ThresholdPolicy(0.95)
    assert controller.lowered(policy).threshold == 0.95


def test_overload_lowers_step_by_step_to_the_bound_and_says_why():
    controller = pushed(4)
    assert [round(c.after, 6) for c in controller.trace] == [0.7, 0.6, 0.5, 0.4]
    assert [c.at for c in controller.trace] == [5, 10, 15, 20]
    assert told(controller, 30, [99] * 9) is None, "the bound holds"
    first = controller.trace[0]
    assert (first.before, first.latency) == (None, 20)
    assert first.reason == "the 95% quantile of 3 latencies is 20 s, above 10 s"


def test_it_comes_back_when_there_is_room_and_to_rest_in_the_end():
    controller = pushed(2)
    assert told(controller, 15, [6.9] * 3).after == pytest.approx(0.7)
    assert told(controller, 20, [1] * 3).after is None
    assert controller.ceiling is None
    assert "below 0.7 of 10 s" in controller.trace[-1].reason


def test_between_the_two_it_rests():
    controller = pushed(1)
    for k in range(2, 30):
        assert told(controller, 5.0 * k, [7.1, 9.9, 8]) is None


def test_no_change_follows_another_too_soon_nor_from_what_was_seen_before_it():
    controller = pushed(1)
    assert told(controller, 9.9, [20] * 3) is None
    controller = pushed(1)
    assert controller.update(30) is None, "those 20 s were under another threshold"


def test_few_observations_lower_nothing_old_ones_are_forgotten():
    controller = Controller(AIM)
    controller.update(0)
    assert told(controller, 6, [20, 20]) is None
    assert told(controller, 70, [20]) is None
    assert told(controller, 71, [20, 20]) is not None


def test_a_quantile_is_of_its_rank():
    controller = Controller(AIM)
    controller.update(0)
    assert told(controller, 6, [1.0] * 95 + [20.0] * 5) is None
    controller = Controller(AIM)
    controller.update(0)
    assert told(controller, 6, [1.0] * 94 + [20.0] * 6) is not None


def test_those_who_wait_too_long_already_count():
    controller = Controller(AIM)
    controller.update(0)
    assert controller.update(6, [11, 12, 3, 4]) is None, "two are late, three are due"
    assert controller.update(7, [11, 12, 13]) is not None


def test_silence_brings_it_back():
    controller = pushed(1)
    assert controller.update(64) is None
    assert controller.update(66, [1.0]) is None, "someone is there"
    change = controller.update(66)
    assert (change.after, change.latency) == (None, None)
    assert "nothing was asked for" in change.reason


def test_how_often_it_is_asked_changes_nothing():
    once, often = Controller(AIM), Controller(AIM)
    for controller, every in ((once, 5.0), (often, 0.25)):
        now = 0.0
        while now <= 100:
            if now % 5 == 0:
                for _ in range(3):
                    controller.observe(now, 20 if now < 40 else 1)
            controller.update(now)
            now += every
    assert list(once.trace) == list(often.trace)
    assert len(once.trace) == 6, "four down by 20 s; back from 95 s on, when what was seen at the bound is a minute old"


def test_a_lowered_policy_accepts_from_the_ceiling_on_and_keeps_the_rest():
    controller = pushed(2)
    scores = [0.59, 0.61, 0.85, math.nan]
    lowered = controller.lowered(ThresholdPolicy(0.8, Decision.REGENERATE))
    assert lowered.threshold == pytest.approx(0.6)
    assert [str(d) for d in lowered.decide(scores)] == ["regenerate", "accept", "accept", "regenerate"]
    easy = controller.lowered(ThresholdPolicy(0.5))
    assert easy.threshold == 0.5, "what is below the ceiling stays"
    always = controller.lowered(AlwaysPolicy(Decision.REFINE))
    assert (always.threshold, always.decide([0.9])) == (None, [Decision.REFINE])
    best = controller.lowered(SequentialPolicy(0.8, 3, margin=math.inf))
    context = Context(["a", "b"], [], attempts=[1, 1])
    assert [str(d) for d in best.decide([0.5, 0.65], context)] == ["redraft", "accept"]


@pytest.mark.parametrize(
    "wrong", [{"low": 0.8}, {"low": math.nan}, {"seconds": 0}, {"quantile": 1}, {"release": 1}, {"steps": 0}, {"hold": 0}]
)
def test_objectives_that_cannot_be_held(wrong):
    with pytest.raises(SettingError, match=next(iter(wrong))):
        Objective(**{"seconds": 1, "low": 0.4, "high": 0.8, **wrong})
