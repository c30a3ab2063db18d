"""The controller in a running engine: thresholds give way under load, come back, and every account says so.

Time is the test's own: a picture takes as long as the test says, whatever this machine is doing.
"""

import base64
import io
import json
import math

import pytest
from conformance import alone, same
from PIL import Image
from served import LOCAL, calibrated, create_app, service
from starlette.testclient import TestClient
from toys import SETTINGS, Grey, Toy

from allaprima.cascade.policy import Capped, Decision, ThresholdPolicy, policy_from_dict, policy_to_dict
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.sequential import SequentialPolicy
from allaprima.pipeline import AdaptivePipeline
from allaprima.serving.controller import Controller, Objective
from allaprima.serving.engine import Engine
from allaprima.serving.handle import EngineRequest
from allaprima.serving.queue import EngineLimits

AIM = Objective(seconds=5, low=0.4, high=0.8, steps=4, hold=1, window=30, least=3)


class Timed(Toy):
    """Every step of it takes `seconds` of the test's clock."""

    def __init__(self, clock, seconds, bias=0.0):
        super().__init__(bias)
        self.clock, self.seconds = clock, seconds

    @property
    def denoiser(self):
        inner = super().denoiser

        def x0(x_t, t, cond):
            self.clock[0] += self.seconds
            return inner(x_t, t, cond)

        x0.evaluations_per_call = inner.evaluations_per_call
        x0.unguided = x0
        return x0


class Loaded:
    """An engine under a load that the test sets; one picture a batch."""

    def __init__(self, pipe=None, aim=AIM, **more):
        self.clock = [0.0]
        self.settings = SETTINGS.changed(batch_size=1)
        self.pipe = pipe or AdaptivePipeline(Timed(self.clock, 0.1), Timed(self.clock, 1.0, 0.3), Grey(), self.settings)
        self.controller = Controller(aim)
        limits = EngineLimits(in_flight=1)
        self.engine = Engine(self.pipe, limits, clock=lambda: self.clock[0], controller=self.controller, **more)

    def burst(self, n, prompt="0.5", policy=ThresholdPolicy(0.8), adjustable=True, start=False):  # noqa: B008 (frozen)
        """Results of so many that come at once: each waits for those before it."""
        requests = [
            EngineRequest(GenerationRequest(prompt, s, index=s), self.settings, policy, adjustable=adjustable)
            for s in range(n)
        ]
        handles = self.engine.submit(requests)
        if start:
            self.engine.start()
        return [t.result(60) for t in handles]


@pytest.fixture
def loaded():
    made = []

    def make(*args, **more):
        made.append(Loaded(*args, **more))
        return made[-1]

    yield make
    for one in made:
        one.engine.stop()


def test_load_lowers_thresholds_within_bounds_and_rest_brings_them_back(loaded):
    one = loaded()
    results = one.burst(40, start=True)
    # Drafts of about .5 fall short of .8: 3.2 s each, so a queue of 40 waits far beyond 5 s, until .5 is enough.
    assert results[0].threshold == 0.8
    thresholds = [r.threshold for r in results]
    assert thresholds == sorted(thresholds, reverse=True)
    assert min(thresholds) == pytest.approx(0.4), "the bound"
    decisions = [str(r.decision) for r in results]
    assert decisions[0] == "refine"
    assert decisions[-1] == "accept"
    down = one.engine.snapshot().changes
    assert [round(c.after, 6) for c in down] == [0.7, 0.6, 0.5, 0.4]
    assert all(c.latency > 5 and "above 5 s" in c.reason for c in down)
    assert all(b.at - a.at >= 1 for a, b in zip(down, down[1:], strict=False))
    # One at a time now, .2 s each: far below the objective.
    for _ in range(400):
        (last,) = one.burst(1, prompt="0.95")
        one.clock[0] += 0.5
        if one.engine.snapshot().ceiling is None:
            break
    changes = one.engine.snapshot().changes
    assert changes[:4] == down
    assert [c.after for c in changes[4:]] == [pytest.approx(0.5), pytest.approx(0.6), pytest.approx(0.7), None]
    assert all("below 0.7 of 5 s" in c.reason for c in changes[4:])
    (last,) = one.burst(1)
    assert (last.threshold, last.decision) == (0.8, Decision.REFINE)


def test_each_is_what_it_is_offline_with_the_threshold_it_tells(loaded):
    one = loaded()
    for result in one.burst(20, start=True):
        same(result, alone(one.pipe, EngineRequest(result.request, one.settings, ThresholdPolicy(result.threshold))))


@pytest.mark.parametrize(
    "policy",
    [
        SequentialPolicy(0.8, regenerate_below=0.55, margin=math.inf),
        SequentialPolicy(0.8, 3, margin=math.inf),
    ],
)
def test_other_policies_too(loaded, policy):
    one = loaded()
    results = one.burst(20, policy=policy, start=True)
    assert min(r.threshold for r in results) == pytest.approx(0.4)
    for result in results:
        capped = policy_from_dict(json.loads(json.dumps(policy_to_dict(Capped(policy, result.threshold)))))
        same(result, alone(one.pipe, EngineRequest(result.request, one.settings, capped)))


def test_who_says_how_it_is_decided_is_left_alone(loaded):
    one = loaded()
    one.burst(20, start=True)
    assert one.controller.ceiling == pytest.approx(0.4)
    (mine,) = one.burst(1, adjustable=False)
    assert (mine.threshold, mine.decision) == (0.8, Decision.REFINE)


def test_an_oracle_that_fails_under_load_follows_its_rule(loaded):
    class Fails(Grey):
        def score(self, images, prompts):
            if "0.45" in prompts:
                raise RuntimeError("no such weights")
            return super().score(images, prompts)

    one = loaded(on_oracle_failure="regenerate")
    one.engine._oracle.oracle = Fails()
    one.burst(20, start=True)
    (odd,) = one.burst(1, prompt="0.45")
    assert odd.decision is Decision.REGENERATE
    assert odd.threshold == pytest.approx(0.4)


def test_answers_metrics_and_pictures_tell_it():
    pipe = calibrated()
    usual = pipe.calibration.threshold
    controller = Controller(Objective(5, usual - 0.2, usual, steps=1, hold=1e9, least=1))
    engine = Engine(pipe, controller=controller)
    engine.start()
    api = TestClient(create_app(service(pipe, engine=engine)), base_url=LOCAL)
    body = {"prompt": f"{usual - 0.1:.3f}", "seed": 1}

    def told(**more):
        (picture,) = api.post("/v1/images/generations", json={**body, **more}).json()["data"]
        chunk = Image.open(io.BytesIO(base64.b64decode(picture["b64_json"]))).text["allaprima"]
        return picture["adaptive"], json.loads(chunk)

    account, chunk = told()
    assert (account["usual_threshold"], account["calibrated"], account["threshold"]) == (None, True, usual)
    assert account["decision"] == "refine"
    assert "allaprima_engine_ceiling" not in api.get("/metrics").text
    controller._move(0.0, 1, "the test says so", 9.0)
    account, chunk = told()
    assert account["threshold"] == chunk["threshold"] == pytest.approx(usual - 0.2)
    assert (account["usual_threshold"], account["calibrated"]) == (usual, False)
    assert account["decision"] == chunk["decision"] == "accept"
    assert "policy" not in chunk, "a threshold tells itself"
    assert f"allaprima_engine_ceiling {controller.ceiling}" in api.get("/metrics").text
    account, _ = told(adaptive={"budget": 4})
    assert (account["usual_threshold"], account["decision"]) == (None, "refine")
    engine.stop()
