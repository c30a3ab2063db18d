"""Painters of whole pictures in the engine, servers among them: what waits has a thread of its own."""

import threading

import pytest
import torch
from conformance import alone, check, play, random_cases, same
from toys import Grey, Toy

from allaprima.cascade.images import derived
from allaprima.cascade.job import Request
from allaprima.cascade.policy import AlwaysPolicy, BestOf, Decision, Recheck, ThresholdPolicy
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.asks import Painted
from allaprima.core.errors import PictureFailed, SettingError
from allaprima.diffusion.rollback import Strength, Variance
from allaprima.models.remote import RemotePainter
from allaprima.pipeline import AdaptivePipeline
from allaprima.serving.engine import Engine
from allaprima.serving.ticket import Ask

SETTINGS = CascadeSettings(
    student_steps=2, teacher_steps=3, student_solver="own", teacher_solver="own", sigma=Strength(0.5), batch_size=4,
    height=2, width=2,
)  # fmt: skip
POLICIES = (
    ThresholdPolicy(0.5),
    BestOf(ThresholdPolicy(0.55), 3),
    Recheck(ThresholdPolicy(0.7)),
    AlwaysPolicy(Decision.REGENERATE),
)


class Whole:
    """A grey per prompt, and a pinch of the seed; fails for `broken`."""

    fingerprint, paints_over, waits = "whole", True, False

    def __init__(self, bias=0.0, waits=False):
        self.bias, self.waits, self.gate, self.threads = bias, waits, None, set()

    def check(self, ask):
        pass

    def encode(self, prompts):
        return torch.zeros(len(prompts), 1, 1)

    def paint(self, asks, batch):
        self.threads.add(threading.current_thread().name)
        if self.gate is not None:
            assert self.gate.wait(10)
        return [self._one(ask) for ask in asks]

    def _one(self, ask):
        try:
            grey = float(ask.prompt) + self.bias
        except ValueError as e:
            return e
        noise = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(ask.seed))
        start = grey if ask.image is None else 0.5 * grey + 0.5 * ask.image
        return Painted((start + 0.2 * noise).clamp(0, 1), ask.steps, ask.steps)


def pipe(student=None, teacher=None):
    return AdaptivePipeline(student or Whole(), teacher or Whole(0.3), Grey(), SETTINGS)


def ask(prompt, seed=1, policy=POLICIES[0]):
    return Ask(Request(prompt, seed), SETTINGS, policy)


@pytest.mark.parametrize("waits", [False, True])
def test_whole_pictures_among_neighbours_are_what_they_are_alone(waits):
    served = pipe(Whole(waits=waits), Whole(0.3, waits=waits))
    engine = Engine(served)
    engine.start()
    prompts = [f"{k / 20}" for k in range(21)]
    cases = random_cases(60, 5, settings=(SETTINGS,), policies=POLICIES, prompts=prompts)
    seen = check(pipe(), cases, play(engine, cases))
    now = engine.snapshot()
    engine.stop()
    assert seen["Finished"] > 30
    assert served.student.threads == {"engine student" if waits else "engine compute"}
    assert served.teacher.threads == {"engine teacher" if waits else "engine compute"}
    assert now.mean_student_steps >= 1
    assert now.mean_teacher_steps > 0


def test_a_server_that_fails_for_one_picture_costs_that_picture():
    engine = Engine(pipe())
    tickets = engine.submit([ask("0.9"), ask("broken"), ask("0.2")])
    engine.start()
    same(tickets[0].result(10), alone(pipe(), ask("0.9")))
    same(tickets[2].result(10), alone(pipe(), ask("0.2")))
    with pytest.raises(PictureFailed, match="the student failed"):
        tickets[1].result(10)
    engine.stop()


def test_while_the_teacher_is_waited_for_drafts_go_on():
    served = pipe(teacher=Whole(0.3, waits=True))
    served.teacher.gate = threading.Event()
    engine = Engine(served)
    engine.start()
    (slow,) = engine.submit([ask("0.0")])
    for i in range(3):
        assert engine.submit([ask("0.9", i)])[0].result(10).decision is Decision.ACCEPT
    assert not slow.done
    served.teacher.gate.set()
    same(slow.result(10), alone(pipe(), ask("0.0")))
    engine.stop()


def test_stopping_does_not_wait_for_ever_for_a_server():
    served = pipe(teacher=Whole(0.3, waits=True))
    served.teacher.gate = threading.Event()
    engine = Engine(served)
    engine.start()
    events = []
    (slow,) = engine.submit([ask("0.0")])
    slow.add_listener(events.append)
    (other,) = engine.submit([ask("0.9")])
    assert other.result(10)
    engine.stop(timeout=0.1)
    told = len(events)
    with pytest.raises(Exception, match="stopped"):
        slow.result(0)
    served.teacher.gate.set()
    for thread in engine._threads:
        thread.join(10)
        assert not thread.is_alive()
    assert len(events) == told, "what comes later is nobody's"


def test_a_policy_these_painters_cannot_carry_out_is_refused_at_once():
    deep = CascadeSettings(**{**vars(SETTINGS), "sigma": Variance(0.5)})
    engine = Engine(pipe())
    with pytest.raises(SettingError, match="Strength"):
        engine.submit([Ask(Request("0.1", 1), deep, POLICIES[0])])
    engine.submit([Ask(Request("0.1", 1), deep, AlwaysPolicy(Decision.ACCEPT))])
    engine.stop()


def test_every_further_draft_has_a_seed_of_its_own():
    class Notes(Whole):
        def _one(self, ask):
            seeds.append(ask.seed)
            return super()._one(ask)

    seeds = []
    made = alone(pipe(student=Notes()), ask("0.1", 7, BestOf(ThresholdPolicy(0.9), 3)))
    assert made.attempts == 3
    assert seeds == [7, derived(7, "initial", 1), derived(7, "initial", 2)]
    assert len(set(seeds)) == 3


def test_a_server_is_known_to_wait():
    assert RemotePainter.waits
    assert not getattr(Toy(), "waits", False)
