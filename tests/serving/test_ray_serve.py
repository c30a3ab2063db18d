"""The engine alone and the same engine over pools on a Ray cluster keep the same promises."""

import os
import signal
from functools import partial

import psutil
import pytest
from conformance import check, play, random_cases, same
from ray_pipes import ray_pipe
from served import until

from allaprima.cascade.policy import AlwaysPolicy, Decision, ThresholdPolicy
from allaprima.cascade.request import GenerationRequest
from allaprima.core.errors import DeadlinePassedError, RequestCancelledError, SettingError
from allaprima.fleet.ray_serve import ReplicaConfig, deployed, pools_of
from allaprima.serving.controller import Controller, Objective
from allaprima.serving.engine import Engine
from allaprima.serving.handle import EngineRequest
from allaprima.serving.queue import EngineLimits
from tests.toys import SETTINGS

WAIT = 0.005
POOLS = "student=2,oracle=1,teacher=2"
# Ray leaves its own subprocesses and files to themselves.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def fleet(ray_cluster):
    pipe = ray_pipe()
    with deployed(ReplicaConfig(partial(ray_pipe, WAIT), pipe.fingerprints()), pools_of(POOLS, 0.1, 0)) as made:
        yield made


@pytest.fixture(params=["process", pytest.param("ray", marks=pytest.mark.slow)])
def make_engine(request):
    """Engines on either; a fleet outlives its engine here, so that pools are loaded once."""
    made = []

    def make(**more):
        workers = None if request.param == "process" else Kept(request.getfixturevalue("fleet"))
        made.append(Engine(ray_pipe(WAIT if workers is None else 0), workers=workers, **more))
        made[-1].start()
        return made[-1]

    yield make
    for engine in made:
        engine.stop()


class Kept:
    def __init__(self, fleet):
        self.run = fleet.run

    def close(self):
        pass


def request(prompt="0.3", seed=1, policy=ThresholdPolicy(0.5), **more):  # noqa: B008
    return EngineRequest(GenerationRequest(prompt, seed), SETTINGS, policy, **more)


def alone(asked):
    (result,) = ray_pipe().stream([asked.request], asked.settings, asked.policy)
    return result


def test_requests_among_random_neighbours_are_what_they_are_alone(make_engine):
    cases = random_cases(120, 5, seconds=1.0)
    engine = make_engine(limits=EngineLimits(queue=40, in_flight=24))
    seen = check(ray_pipe(), cases, play(engine, cases))
    assert seen["Finished"] > 40
    now = engine.snapshot()
    assert (now.accepted, now.finished + now.failed + now.cancelled) == (120, 120)
    assert (now.queued, now.in_flight, now.held_bytes) == (0, {}, 0)
    assert set(now.fill) >= {"new", "student", "score", "teacher", "decode"}
    assert all(0 < share <= 1.001 for share in now.fill.values())
    assert now.mean_teacher_steps > 0


@pytest.mark.slow
def test_five_hundred_requests(make_engine):
    cases = random_cases(500, 3, seconds=5)
    seen = check(ray_pipe(), cases, play(make_engine(limits=EngineLimits(queue=64, in_flight=32)), cases))
    assert seen["Finished"] > 100
    assert min(seen.values()) > 0


def test_cancelling_and_deadlines_end_a_picture_that_is_painted(make_engine):
    engine = make_engine()
    slow = SETTINGS.changed(teacher_steps=1000)
    redo = AlwaysPolicy(Decision.REGENERATE)
    (left,) = engine.submit([EngineRequest(GenerationRequest("0.3", 1), slow, redo)])
    (late,) = engine.submit([EngineRequest(GenerationRequest("0.3", 2), slow, redo, deadline=engine.clock() + 1)])
    until(lambda: "teacher" in engine.snapshot().in_flight)
    left.cancel()
    with pytest.raises(RequestCancelledError):
        left.result(60)
    with pytest.raises(DeadlinePassedError):
        late.result(60)
    same(engine.submit([request()])[0].result(60), alone(request()))


def test_a_lowered_threshold_is_the_one_at_the_time(make_engine):
    controller = Controller(Objective(1.0, 0.1, 0.9))
    controller._place = controller.objective.steps
    engine = make_engine(controller=controller)
    (handle,) = engine.submit([request("0.3", policy=ThresholdPolicy(0.9), adjustable=True)])
    result = handle.result(60)
    assert result.threshold == pytest.approx(0.1)
    assert result.decision is Decision.ACCEPT


@pytest.mark.slow
def test_killed_replicas_lose_no_accepted_request(fleet):
    """One of each painting pool, and the only oracle, while requests are under way."""
    engine = Engine(ray_pipe(), EngineLimits(queue=200, in_flight=24), workers=Kept(fleet))
    engine.start()
    requests = [request(f"{k % 20 / 20}", 100 + k) for k in range(150)]
    again = fleet.asked_again
    handles = engine.submit(requests)
    until(lambda: engine.snapshot().finished > 5)
    for name in ("student", "teacher", "oracle"):
        os.kill(replicas(name)[0].pid, signal.SIGKILL)
    results = [handle.result(300) for handle in handles]
    for asked, result in zip(requests, results, strict=True):
        same(result, alone(asked))
    assert fleet.asked_again > again, "something was on its way when they died"
    now = engine.snapshot()
    assert (now.finished, now.failed, now.cancelled) == (150, 0, 0)
    engine.stop()
    until(lambda: len(replicas("student")) == len(replicas("teacher")) == 2, 120)


def replicas(name):
    """Processes of a pool: those of this cluster are descendants of this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if "ServeReplica" in title and f":{name}" in title:
            found.append(process)
    return found


def test_pools_are_read_and_odd_ones_refused():
    pools = pools_of("teacher=1-4, student=2", 2.0, 1.0)
    assert {k: (p.least, p.most) for k, p in pools.items()} == {"student": (2, 2), "oracle": (1, 1), "teacher": (1, 4)}
    assert pools["teacher"].options(8)["autoscaling_config"]["max_replicas"] == 4
    for odd in ("painter=2", "teacher", "teacher=x", "teacher=3-2", "teacher=0"):
        with pytest.raises(SettingError):
            pools_of(odd, 1, 0)
