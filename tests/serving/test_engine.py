"""The engine on toys: conformance under load, and each promise alone."""

import gc
import threading
import time
import weakref

import pytest
import torch
from conformance import BROKEN, NOT_A_NUMBER, OTHERS, alone, check, play, random_cases, same, toy_pipe
from toys import SETTINGS, Grey, Toy

from allaprima.cascade.policy import AlwaysPolicy, Decision, ThresholdPolicy
from allaprima.cascade.request import GenerationRequest
from allaprima.core.errors import (
    DeadlinePassedError,
    DrainingError,
    EngineStoppedError,
    PictureFailedError,
    PromptError,
    QueueFullError,
    RequestCancelledError,
    SettingError,
)
from allaprima.pipeline import AdaptivePipeline
from allaprima.serving.engine import Engine
from allaprima.serving.handle import Draft, EngineRequest, Finished, Started
from allaprima.serving.queue import EngineLimits

HALF = ThresholdPolicy(0.5)


def request(prompt="0.3", seed=1, policy=HALF, settings=SETTINGS, **more):
    return EngineRequest(GenerationRequest(prompt, seed), settings, policy, **more)


@pytest.fixture
def engines():
    made = []

    def make(pipe=None, start=True, **more):
        made.append(Engine(toy_pipe() if pipe is None else pipe, **more))
        if start:
            made[-1].start()
        return made[-1]

    yield make
    for engine in made:
        engine.stop()
        assert not [t for t in engine._threads if t.is_alive()], "threads end with their engine"


class Gate(Toy):
    """Waits at every step until it is let through; notes the times of each batch."""

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.open, self.came, self.times = threading.Event(), threading.Semaphore(0), []

    @property
    def denoiser(self):
        inner = super().denoiser

        def x0(x_t, t, cond):
            self.times.append(t.tolist())
            self.came.release()
            assert self.open.wait(10)
            return inner(x_t, t, cond)

        x0.evaluations_per_call = inner.evaluations_per_call
        x0.unguided = x0
        return x0


def gated(**more):
    return AdaptivePipeline(Gate(), Toy(0.3), Grey(), SETTINGS, **more)


@pytest.mark.parametrize("seed", [1])
def test_sixty_requests_among_random_neighbours_are_what_they_are_alone(engines, seed):
    cases = random_cases(60, seed)
    engine = engines(limits=EngineLimits(queue=20, in_flight=11))
    seen = check(toy_pipe(), cases, play(engine, cases))
    assert seen["Finished"] > 30
    now = engine.snapshot()
    assert (now.accepted, now.finished + now.failed + now.cancelled) == (60, 60)
    assert (now.queued, now.in_flight, now.held_bytes) == (0, {}, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3])
def test_five_hundred_requests(engines, seed):
    cases = random_cases(500, seed, seconds=5)
    engine = engines(limits=EngineLimits(queue=64, in_flight=16))
    seen = check(toy_pipe(), cases, play(engine, cases))
    # How many are cancelled in time, or late, depends on the machine's speed.
    assert seen["Finished"] > 100
    assert min(seen.values()) > 0


def test_what_is_served_is_what_the_pipelines_call_paints(engines):
    pipe, engine = toy_pipe(), engines()
    prompts = [f"{i / 10}" for i in range(10)]
    called = pipe(prompts, seed=7, threshold=0.5, output_type="pt")
    handles = engine.submit([request(p, 7 + i) for i, p in enumerate(prompts)])
    for handle, image, score in zip(handles, called.images, called.scores, strict=True):
        assert torch.equal(handle.result(10).image, image)
        assert handle.result(0).score == score
    assert {str(t.result(0).decision) for t in handles} == {"accept", "refine"}


def test_a_request_joins_its_batch_at_the_next_step(engines):
    pipe = gated()
    engine = engines(pipe, limits=EngineLimits(patience=50))
    (first,) = engine.submit([request("0.9", 1)])
    pipe.student.came.acquire()
    (second,) = engine.submit([request("0.8", 2)])
    pipe.student.open.set()
    assert first.result(10).image is not None
    same(second.result(10), alone(pipe, request("0.8", 2)))
    late, early = min(pipe.student.times[0]), max(pipe.student.times[0])
    mixed = [t for t in pipe.student.times[:3] if len(set(t)) > 1]
    assert mixed, f"one at its first step and one at its second share a batch: {pipe.student.times} {late} {early}"


def test_a_machine_for_each_settings_and_the_oldest_is_let_go(engines):
    engine = engines(limits=EngineLimits(cascades=2))
    for settings in (*OTHERS, OTHERS[0]):
        (handle,) = engine.submit([request(settings=settings)])
        same(handle.result(10), alone(toy_pipe(), request(settings=settings)))
    assert engine.snapshot().cascades == 2


def test_all_or_none_and_how_long_to_wait(engines):
    engine = engines(start=False, limits=EngineLimits(queue=3))
    engine.submit([request()] * 2)
    with pytest.raises(QueueFullError, match="2 of 3") as e:
        engine.submit([request()] * 2)
    assert e.value.retry_after >= 1
    assert engine.snapshot().queued == 2
    engine.submit([request()])
    with pytest.raises(SettingError, match="4 pictures at once"):
        engine.submit([request()] * 4)
    assert engine.snapshot().refused == 2
    assert engine.submit([]) == []


def test_memory_is_bounded_too(engines):
    one = 4 * 3 * 2 * 2 * 4
    with pytest.raises(SettingError, match="more than the limit"):
        engines(start=False, limits=EngineLimits(bytes=one - 1)).submit([request()])
    pipe = gated()
    engine = engines(pipe, limits=EngineLimits(bytes=2 * one))
    handles = engine.submit([request("0.9", i) for i in range(5)])
    pipe.student.came.acquire()
    now = engine.snapshot()
    assert (sum(now.in_flight.values()), now.queued, now.held_bytes) == (2, 3, 2 * one)
    pipe.student.open.set()
    assert [t.result(10).decision for t in handles] == [Decision.ACCEPT] * 5


def test_what_cannot_be_painted_is_refused_before_it_is_queued(engines):
    class Picky(Toy):
        def check_prompt(self, prompt):
            if not prompt:
                raise PromptError("the prompt is empty")

    engine = engines(AdaptivePipeline(Picky(), Toy(0.3), None, SETTINGS), start=False)
    with pytest.raises(PromptError):
        engine.submit(
            [request("0.1", policy=AlwaysPolicy(Decision.ACCEPT)), request("", policy=AlwaysPolicy(Decision.ACCEPT))]
        )
    with pytest.raises(SettingError, match="needs an oracle"):
        engine.submit([request()])
    assert engine.snapshot().accepted == 0


def test_one_that_raises_or_gives_nan_fails_alone(engines):
    engine = engines(start=False)
    prompts = ["0.2", BROKEN, "0.9", NOT_A_NUMBER, "0.4"]
    handles = engine.submit([request(p, i) for i, p in enumerate(prompts)])
    engine.start()
    for i in (0, 2, 4):
        same(handles[i].result(10), alone(toy_pipe(), request(prompts[i], i)))
    with pytest.raises(PictureFailedError, match="could not convert") as e:
        handles[1].result(10)
    assert isinstance(e.value.__cause__, ValueError)
    with pytest.raises(PictureFailedError, match="finite"):
        handles[3].result(10)
    now = engine.snapshot()
    assert (now.finished, now.failed, now.retried) == (3, 2, 4)


def test_a_batch_that_fails_half_way_is_taken_up_where_it_was(engines):
    class Fickle(ThresholdPolicy):
        """Fails once, after its batch was scored: drafts must not count twice."""

        calls = 0

        def decide(self, scores, context=None):
            Fickle.calls += 1
            if Fickle.calls == 2:
                raise RuntimeError("once")
            return super().decide(scores, context)

    engine = engines(start=False)
    handles = engine.submit([request(f"0.{i}", i, Fickle(0.5)) for i in range(4)])
    engine.start()
    for i, handle in enumerate(handles):
        same(handle.result(10), alone(toy_pipe(), request(f"0.{i}", i)))
    assert engine.snapshot().retried == 4


def test_cancelling_frees_the_place_and_the_slot(engines):
    pipe = gated()
    engine = engines(pipe, limits=EngineLimits(queue=1, in_flight=1))
    (painted,) = engine.submit([request("0.9", 1)])
    pipe.student.came.acquire()
    (queued,) = engine.submit([request("0.9", 2)])
    queued.cancel()
    (third,) = engine.submit([request("0.9", 3)])
    painted.cancel()
    pipe.student.open.set()
    for handle in (painted, queued):
        with pytest.raises(RequestCancelledError):
            handle.result(10)
        handle.cancel()
    assert third.result(10).image is not None
    assert engine.snapshot().cancelled == 2
    steps = len(pipe.student.times)
    assert steps == 1 + SETTINGS.student_steps, "the one that left was painted no further"


def test_deadlines_in_the_queue_in_flight_and_those_that_cannot_be_met(engines):
    now = [100.0]
    pipe = gated()
    engine = engines(pipe, clock=lambda: now[0], limits=EngineLimits(in_flight=2))
    painted, _ = engine.submit([request("0.9", 1, deadline=110), request("0.9", 2)])
    pipe.student.came.acquire()
    queued, met = engine.submit([request("0.9", 3, deadline=109), request("0.9", 4, deadline=1000)])
    now[0] = 111
    pipe.student.open.set()
    for handle, words in ((painted, "while it was painted"), (queued, "while it waited")):
        with pytest.raises(DeadlinePassedError, match=words):
            handle.result(10)
    assert met.result(10).image is not None
    (loaded,) = engine._cascades._loaded.values()
    loaded.seconds = dict.fromkeys(loaded.seconds, 50.0)
    (hopeless,) = engine.submit([request("0.9", 5, deadline=now[0] + 190)])
    with pytest.raises(DeadlinePassedError, match="can't be met"):
        hopeless.result(10)
    assert engine.snapshot().expired == 3


def test_what_a_deadline_needs_is_told_by_the_deadlines_clock(engines):
    engine = engines(clock=lambda: 7.0)
    for seed in range(3):
        (handle,) = engine.submit([request("0.1", seed, deadline=7.1)])
        assert handle.result(10).image is not None
    (loaded,) = engine._cascades._loaded.values()
    assert set(loaded.seconds.values()) == {0.0}, "on this clock nothing takes any time"
    assert engine.snapshot().seconds["student"] > 0


def test_draining_finishes_what_was_accepted_and_takes_nothing_new(engines):
    engine = engines(start=False)
    handles = engine.submit([request("0.3", i) for i in range(9)])
    assert not engine.drain(0.01)
    engine.start()
    assert engine.drain(10)
    assert all(t.done for t in handles)
    with pytest.raises(DrainingError):
        engine.submit([request()])
    assert engine.snapshot().draining


def test_stopping_hands_back_what_is_unfinished(engines):
    pipe = gated()
    engine = engines(pipe, limits=EngineLimits(in_flight=1))
    handles = engine.submit([request("0.9", i) for i in range(3)])
    pipe.student.came.acquire()

    def open_once_it_stops():
        while engine.snapshot().running:
            time.sleep(0.005)
        pipe.student.open.set()

    threading.Thread(target=open_once_it_stops).start()
    engine.stop()
    for handle in handles:
        with pytest.raises(EngineStoppedError, match="ask again"):
            handle.result(0)
    with pytest.raises(DrainingError):
        engine.submit([request()])
    assert not engine.snapshot().running
    assert engine.drain(1)
    engine.stop()


def test_a_bug_in_the_engine_is_told_to_everyone(engines, monkeypatch, caplog):
    engine = engines(start=False)
    handles = engine.submit([request("0.9", i) for i in range(3)])
    monkeypatch.setattr(engine._scheduler, "next_batch", lambda lane: 1 / 0)
    engine.start()
    with pytest.raises(EngineStoppedError, match="ZeroDivisionError"):
        handles[2].result(10)


def test_listeners_hear_everything_in_order_whenever_they_come_and_do_no_harm(engines, caplog):
    engine = engines(start=False)
    (handle,) = engine.submit([request("0")])
    early, late = [], []

    def fails(event):
        raise RuntimeError("mine")

    handle.add_listener(fails)
    handle.add_listener(early.append)
    handle.add_listener(lambda e: early.append(handle.result(0)) if isinstance(e, Finished) else None)
    engine.start()
    result = handle.result(10)
    assert engine.drain(10)
    handle.add_listener(late.append)
    assert [type(e) for e in early[:3]] == [Started, Draft, Finished]
    assert early[3] is result
    assert late == early[:3]
    assert early[1].decision is Decision.REFINE
    assert early[1].score == result.score
    assert "a listener failed" in caplog.text
    with pytest.raises(TimeoutError):
        engines(start=False).submit([request()])[0].result(0.01)


def test_nothing_is_left_of_what_was_served(engines):
    engine, refs = engines(), []

    def serve(n):
        for i in range(n):
            (handle,) = engine.submit([request("0.3", i, client=str(i))])
            refs.append(weakref.ref(handle.result(10).image))
            refs.append(weakref.ref(handle))

    gc.collect()
    gc.disable()
    try:
        serve(20)
        assert engine.drain(10)
        until = time.monotonic() + 5
        while any(r() is not None for r in refs) and time.monotonic() < until:
            time.sleep(0.01)  # the compute thread may still be leaving its last batch
        assert [r for r in refs if r() is not None] == [], "not even until garbage is next collected"
    finally:
        gc.enable()
    assert len(engine._scheduler.queue._had) == 0
    assert (engine._scheduler.running, engine._scheduler.requests, engine._scheduler.take_cancelled()) == ([], {}, [])
    assert all(len(p) == 0 for p in engine._scheduler._passed.values())


def test_submitting_does_not_wait_for_a_step(engines):
    pipe = gated()
    engine = engines(pipe)
    engine.submit([request("0.9", 1)])
    pipe.student.came.acquire()
    begun = time.perf_counter()
    for i in range(20):
        engine.submit([request("0.9", i)])
    engine.snapshot()
    assert time.perf_counter() - begun < 1, "the compute thread sits in a step that never ends"
    pipe.student.open.set()
    assert engine.drain(10)
