"""A batch that fails is retried job by job: what the failed attempt had charged is taken back."""

from allaprima.cascade.policy import AlwaysPolicy, Decision, ThresholdPolicy
from allaprima.cascade.request import GenerationRequest
from allaprima.pipeline import AdaptivePipeline
from allaprima.serving.engine import Engine
from allaprima.serving.handle import EngineRequest
from tests.toys import SETTINGS, VP, Grey, Toy


class Flaky(Toy):
    """A teacher that raises once, when it is about to take over drafts whose scoring has been charged already."""

    armed = False

    @property
    def schedule(self):
        if self.armed:
            self.armed = False
            raise RuntimeError("once")
        return VP


def test_a_retried_job_costs_what_it_costs_alone():
    requests = [EngineRequest(GenerationRequest(f"0.{i}", i), SETTINGS, ThresholdPolicy(2.0)) for i in range(1, 5)]
    pipe = AdaptivePipeline(Toy(), Flaky(0.3), Grey(), SETTINGS)
    engine = Engine(pipe)
    try:
        handles = engine.submit(requests)
        pipe.teacher.armed = True
        engine.start()
        results = [handle.result(30) for handle in handles]
        retried = engine.snapshot().retried
    finally:
        engine.stop()
    assert not pipe.teacher.armed and retried == len(requests), "the batch failed once and was retried"
    plain = AdaptivePipeline(Toy(), Toy(0.3), Grey(), SETTINGS)
    for request, result in zip(requests, results, strict=True):
        (alone,) = plain.stream([request.request], SETTINGS, request.policy)
        assert result.cost.evaluations == alone.cost.evaluations
    assert [r.cost.evaluations["oracle"] for r in results] == [1] * len(requests)


def test_a_retried_job_keeps_no_time_of_the_attempt_that_failed():
    """Seconds too: text, decoding and scoring are charged before a policy may raise."""

    class Once(AlwaysPolicy):
        failed = False

        def decide(self, scores, context=None):
            if not Once.failed:
                Once.failed = True
                raise RuntimeError("once")
            return super().decide(scores, context)

    now = [0.0]

    def clock():
        now[0] += 1.0
        return now[0]

    pipe = AdaptivePipeline(Toy(), Toy(0.3), Grey(), SETTINGS)
    engine = Engine(pipe)
    try:
        handles = engine.submit(
            [EngineRequest(GenerationRequest("0.3", i), SETTINGS, Once(Decision.ACCEPT)) for i in range(2)]
        )
        # Each stage then lasts one tick of this clock, shared evenly by its jobs.
        for item in engine._scheduler.requests.values():
            item.loaded.cascade._clock = clock
        engine.start()
        costs = [handle.result(30).cost.seconds for handle in handles]
    finally:
        engine.stop()
    assert Once.failed
    # Decoded alone at the second attempt: one tick. The tick that the failed batch of two shared would add 0.5.
    assert [c["decode"] for c in costs] == [1.0, 1.0]
