"""Oracles that raise, hang or give no number, under each rule for that."""

import math
import threading
import time

import pytest
import torch
from conformance import alone, same
from toys import SETTINGS, Grey, Toy

from allaprima.cascade.policy import AlwaysPolicy, Decision, ThresholdPolicy
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.sequential import SequentialPolicy
from allaprima.core.errors import ModelError, PictureFailedError, SettingError
from allaprima.pipeline import AdaptivePipeline
from allaprima.serving.engine import Engine
from allaprima.serving.handle import Draft, EngineRequest
from allaprima.serving.oracle_guard import GuardedOracle

BAD = "0.35"


def pipe(oracle):
    return AdaptivePipeline(Toy(), Toy(0.3), oracle, SETTINGS)


def request(prompt, seed=1, policy=ThresholdPolicy(0.5)):  # noqa: B008 (frozen)
    return EngineRequest(GenerationRequest(prompt, seed), SETTINGS, policy)


def served(oracle, requests, **more):
    engine = Engine(pipe(oracle), **more)
    handles = engine.submit(requests)
    engine.start()
    try:
        assert engine.drain(20)
        return handles, engine.snapshot()
    finally:
        engine.stop()


ASKS = [request("0.9", 1), request(BAD, 2), request("0.1", 3), request(BAD, 4, AlwaysPolicy(Decision.ACCEPT))]


@pytest.mark.parametrize(
    ("rule", "decision"), [("policy", "refine"), ("accept", "accept"), ("regenerate", "regenerate"), ("refuse", None)]
)
def test_a_draft_without_a_score_goes_the_way_that_was_set(rule, decision):
    handles, now = served(Grey(broken=[BAD]), ASKS, on_oracle_failure=rule)
    assert [str(handles[i].result(0).decision) for i in (0, 2, 3)] == ["accept", "refine", "accept"]
    assert now.oracle_failures == 2
    if decision is None:
        with pytest.raises(PictureFailedError, match="no such weights"):
            handles[1].result(0)
        return
    found = handles[1].result(0)
    assert str(found.decision) == decision
    assert "no such weights" in found.warning
    due = {"accept": AlwaysPolicy(Decision.ACCEPT), "regenerate": AlwaysPolicy(Decision.REGENERATE)}.get(rule)
    offline = alone(pipe(Grey(broken=[BAD])), request(BAD, 2) if due is None else request(BAD, 2, due))
    assert torch.equal(found.image, offline.image)
    if rule == "policy":
        same_but_nan(found, offline)


def same_but_nan(found, offline):
    assert found.score != found.score
    assert offline.score != offline.score
    assert found.warning == offline.warning


def test_no_further_draft_is_painted_for_an_oracle_that_is_out():
    (handle,), _ = served(
        Grey(broken=[BAD]),
        [request(BAD, 2, SequentialPolicy(0.5, 3, margin=math.inf))],
        on_oracle_failure="accept",
    )
    assert handle.result(0).attempts == 1


class Hangs(Grey):
    """Doesn't come back while `hang` is set."""

    def __init__(self):
        super().__init__()
        self.hang, self.back, self.calls = True, threading.Event(), 0

    def score(self, images, prompts):
        self.calls += 1
        if self.hang:
            assert self.back.wait(20)
        return super().score(images, prompts)


def test_one_that_hangs_is_given_up_and_asked_again_once_it_is_back():
    oracle = Hangs()
    engine = Engine(pipe(oracle), on_oracle_failure="accept", oracle_timeout=0.2)
    engine.start()
    try:
        handles = engine.submit([request("0.1", i) for i in range(6)])
        begun = time.monotonic()
        assert {str(t.result(20).decision) for t in handles} == {"accept"}
        assert time.monotonic() - begun < 5, "one time-out for all of them"
        now = engine.snapshot()
        assert (now.oracle_timeouts, now.oracle_failures, oracle.calls) == (1, 6, 1)
        oracle.hang = False
        oracle.back.set()
        until = time.monotonic() + 5
        while engine._oracle._hung is not None and not engine._oracle._hung.done() and time.monotonic() < until:
            time.sleep(0.01)
        (handle,) = engine.submit([request("0.1", 9)])
        same(handle.result(20), alone(pipe(Grey()), request("0.1", 9)))
    finally:
        oracle.back.set()
        engine.stop()


def test_a_timeout_changes_no_score_and_hides_no_error():
    images = torch.rand(4, 3, 2, 2)
    watched = GuardedOracle(Grey(broken=["x"]), 5.0)
    assert torch.equal(watched.score(images, ["a"] * 4), Grey().score(images, ["a"] * 4))
    with pytest.raises(RuntimeError, match="no such weights"):
        watched.score(images, ["x"] * 4)
    assert (watched.timeouts, hasattr(watched, "score_given")) == (0, False)
    watched.close()

    class Slow(Grey):
        def score(self, images, prompts):
            raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        GuardedOracle(Slow(), 5.0).score(images, ["a"] * 4)


def test_an_oracle_that_reads_controls_still_does():
    class Reads(Grey):
        def score_given(self, images, prompts, controls):
            return controls[0].mean((1, 2, 3))

    for timeout in (None, 5.0):
        watched = GuardedOracle(Reads(), timeout)
        assert watched.score_given(torch.zeros(1, 3, 2, 2), ["a"], [torch.ones(1, 3, 2, 2)]).tolist() == [1]
        watched.close()


def test_drafts_are_shown_with_what_became_of_them():
    events = []
    engine = Engine(pipe(Grey(broken=[BAD])), on_oracle_failure="regenerate")
    (handle,) = engine.submit([request(BAD)])
    handle.add_listener(events.append)
    engine.start()
    handle.result(20)
    engine.stop()
    (draft,) = [e for e in events if isinstance(e, Draft)]
    assert (str(draft.decision), draft.threshold, draft.score != draft.score) == ("regenerate", 0.5, True)


def test_wrong_settings_are_named():
    with pytest.raises(SettingError, match="on_oracle_failure='hope'"):
        Engine(pipe(Grey()), on_oracle_failure="hope")
    with pytest.raises(SettingError, match="oracle_timeout=0"):
        Engine(pipe(Grey()), oracle_timeout=0)
    assert issubclass(ModelError, Exception)
