"""Painters of whole pictures in the engine, servers among them: what waits has a thread of its own."""

import math
import threading

import pytest
import torch
from conformance import alone, check, play, random_cases, same
from toys import Grey, Toy

from allaprima.cascade.pixel_cascade import derived
from allaprima.cascade.policy import AlwaysPolicy, Decision, ThresholdPolicy
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.sequential import SequentialPolicy
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import PictureFailedError, SettingError
from allaprima.diffusion.noising import Strength, Variance
from allaprima.models.external.image_generator import GeneratedImage
from allaprima.models.external.openai_generator import OpenAIGenerator
from allaprima.pipeline import AdaptivePipeline
from allaprima.serving.engine import Engine
from allaprima.serving.handle import EngineRequest

SETTINGS = CascadeSettings(
    student_steps=2, teacher_steps=3, student_solver="own", teacher_solver="own", sigma=Strength(0.5), batch_size=4,
    height=2, width=2,
)  # fmt: skip
POLICIES = (
    ThresholdPolicy(0.5),
    SequentialPolicy(0.55, 3, margin=math.inf),
    SequentialPolicy(0.7),
    AlwaysPolicy(Decision.REGENERATE),
)


class Whole:
    """A grey per prompt, and a pinch of the seed; fails for `broken`."""

    fingerprint, paints_over, waits = "whole", True, False

    def __init__(self, bias=0.0, waits=False):
        self.bias, self.waits, self.gate, self.threads = bias, waits, None, set()

    def check(self, request):
        pass

    def encode(self, prompts):
        return torch.zeros(len(prompts), 1, 1)

    def paint(self, requests, batch):
        self.threads.add(threading.current_thread().name)
        if self.gate is not None:
            assert self.gate.wait(10)
        return [self._one(request) for request in requests]

    def _one(self, request):
        try:
            grey = float(request.prompt) + self.bias
        except ValueError as e:
            return e
        noise = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(request.seed))
        start = grey if request.image is None else 0.5 * grey + 0.5 * request.image
        return GeneratedImage((start + 0.2 * noise).clamp(0, 1), request.steps, request.steps)


def pipe(student=None, teacher=None):
    return AdaptivePipeline(student or Whole(), teacher or Whole(0.3), Grey(), SETTINGS)


def request(prompt, seed=1, policy=POLICIES[0]):
    return EngineRequest(GenerationRequest(prompt, seed), SETTINGS, policy)


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
    handles = engine.submit([request("0.9"), request("broken"), request("0.2")])
    engine.start()
    same(handles[0].result(10), alone(pipe(), request("0.9")))
    same(handles[2].result(10), alone(pipe(), request("0.2")))
    with pytest.raises(PictureFailedError, match="the student failed"):
        handles[1].result(10)
    engine.stop()


def test_while_the_teacher_is_waited_for_drafts_go_on():
    served = pipe(teacher=Whole(0.3, waits=True))
    served.teacher.gate = threading.Event()
    engine = Engine(served)
    engine.start()
    (slow,) = engine.submit([request("0.0")])
    for i in range(3):
        assert engine.submit([request("0.9", i)])[0].result(10).decision is Decision.ACCEPT
    assert not slow.done
    served.teacher.gate.set()
    same(slow.result(10), alone(pipe(), request("0.0")))
    engine.stop()


def test_stopping_does_not_wait_for_ever_for_a_server():
    served = pipe(teacher=Whole(0.3, waits=True))
    served.teacher.gate = threading.Event()
    engine = Engine(served)
    engine.start()
    events = []
    (slow,) = engine.submit([request("0.0")])
    slow.add_listener(events.append)
    (other,) = engine.submit([request("0.9")])
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
        engine.submit([EngineRequest(GenerationRequest("0.1", 1), deep, POLICIES[0])])
    engine.submit([EngineRequest(GenerationRequest("0.1", 1), deep, AlwaysPolicy(Decision.ACCEPT))])
    engine.stop()


def test_every_further_draft_has_a_seed_of_its_own():
    class Notes(Whole):
        def _one(self, request):
            seeds.append(request.seed)
            return super()._one(request)

    seeds = []
    made = alone(pipe(student=Notes()), request("0.1", 7, SequentialPolicy(0.9, 3, margin=math.inf)))
    assert made.attempts == 3
    assert seeds == [7, derived(7, "initial", 1), derived(7, "initial", 2)]
    assert len(set(seeds)) == 3


def test_a_server_is_known_to_wait():
    assert OpenAIGenerator.waits
    assert not getattr(Toy(), "waits", False)
