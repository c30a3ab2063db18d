"""The benchmark that compares simulator and engine: its clock, its runs and its comparison, on a toy."""

import json
import time

import pytest
from toys import SETTINGS, Grey, Toy

from allaprima.cascade.policy import ThresholdPolicy
from allaprima.fleet.workload import STAGES
from allaprima.pipeline import AdaptivePipeline
from benchmarks import simulator


class Slow(Toy):
    """A step of it takes .02 s; what else there is takes nothing beside that."""

    @property
    def denoiser(self):
        inner = super().denoiser

        def x0(x_t, t, cond):
            time.sleep(0.02)
            return inner(x_t, t, cond)

        x0.evaluations_per_call = inner.evaluations_per_call
        x0.unguided = x0
        return x0


@pytest.fixture
def bench():
    """Half of the prompts fall short."""
    pipe = AdaptivePipeline(Slow(), Slow(0.3), Grey(), SETTINGS)
    return simulator.Bench(pipe, ThresholdPolicy(0.5), ["0.2", "0.8"])


def test_a_run_tells_of_each_picture_in_the_order_of_asking(bench):
    run = bench.run([0.0, 0.05, 0.05])
    assert run.arrived == sorted(run.arrived)
    assert run.arrived[2] >= 0.1
    assert len(run.latencies) == len(run.escalated) == 3
    for latency, escalated in zip(run.latencies, run.escalated, strict=True):
        assert latency >= 0.02 * (2 + escalated)


def test_every_call_of_every_stage_is_timed_and_taken_once(bench):
    bench.run([0.0] * 9)
    kept = bench.clock.take()
    assert set(kept) == set(STAGES)
    assert min(len(kept[s]) for s in STAGES) >= 1
    assert min(kept["student"] + kept["teacher"]) >= 0.02
    assert all(v == [] for v in bench.clock.take().values())


def test_a_load_is_recorded_measured_and_simulated(bench):
    capacity = bench.capacity(12)
    assert capacity > 0
    row, recording = simulator.compare(bench, 0.5, capacity, 1.0)
    json.dumps(row)
    assert row["pictures"] >= 20
    assert 0 < row["escalated"] < 1
    assert row["pictures_a_second"] == pytest.approx(0.5 * capacity)
    assert row["difference"] == pytest.approx(row["p95_simulator"] / row["p95_engine"] - 1)
    assert row["p95_simulator"] >= 0.02 * 2, "two steps of the student, at least"
    assert recording.batch == SETTINGS.batch_size
    assert all(recording.seconds[s] for s in STAGES)
