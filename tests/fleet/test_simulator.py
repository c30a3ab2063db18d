"""The simulator against queues whose answers are known, and against the engine's rule."""

import dataclasses

import numpy as np
import pytest
from fleets import ZERO, exponential, in_front_of, kind, plain_queue
from scipy import stats

from allaprima.core.errors import SettingError
from allaprima.fleet.queueing import erlang_c
from allaprima.fleet.simulator import EngineRule, MachineGroup, SimulatedRequest, Trace, simulate
from allaprima.fleet.workload import LAYOUTS, STAGES, Demand, Kind
from allaprima.serving.batching import PATIENCE

SEEDS = range(6)


def demand(rate, **changes):
    return dataclasses.replace(Demand(rate, 1e6, 4, 20, 20), **changes)


def plain(rate, **changes):
    """One call a stage: what happens at the score alone counts."""
    return demand(rate, student_steps=1, **changes)


def interval(values, level=0.999):
    """Of the mean over seeds, by Student's t."""
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return np.mean(values) - half, np.mean(values) + half


def queue(servers, rate, mean, seed, count=4000, **changes):
    return simulate(plain(rate, **changes), LAYOUTS["apart"], plain_queue(servers, mean), 0.0, count, 1000, seed)


@pytest.mark.parametrize(("servers", "load"), [(1, 0.5), (1, 0.7), (3, 0.7), (8, 0.8)])
def test_mmc_in_closed_form(servers, load):
    rate = load * servers
    runs = [queue(servers, rate, 1.0, seed) for seed in SEEDS]
    waits = erlang_c(servers, rate)
    # Sojourn of M/M/c: E T = 1 / mu + C / (c mu - lambda); of M/M/1 exponential with rate mu - lambda.
    low, high = interval([r.latencies.mean() for r in runs])
    assert low <= 1 + waits / (servers - rate) <= high
    assert high - low < 0.5 * (1 + waits / (servers - rate))
    low, high = interval([r.busy["oracle"] for r in runs])
    assert low <= load <= high
    if servers == 1:
        low, high = interval([r.p95 for r in runs])
        assert low <= np.log(20) / (1 - rate) <= high


def test_md1_waits_half_as_long_as_mm1():
    group = MachineGroup(Kind("server", 1.0, 1, {**ZERO, "score": (1.0,)}), 1)
    means = [simulate(plain(0.7), LAYOUTS["apart"], in_front_of(group), 0.0, 4000, 1000, s).latencies.mean() for s in SEEDS]
    low, high = interval(means)
    assert low <= 1 + 0.7 / (2 * 0.3) <= high


def test_arrivals_by_the_clock_don_t_wait():
    group = MachineGroup(Kind("server", 1.0, 1, {**ZERO, "score": (1.0,)}), 1)
    seen = simulate(plain(0.9, burstiness=0.0), LAYOUTS["apart"], in_front_of(group), 0.0, 500, 50)
    assert seen.latencies == pytest.approx(np.ones(500))


def test_bursts_wait_longer():
    means = [[queue(1, 0.6, 1.0, s, 1500, burstiness=b).latencies.mean() for s in range(4)] for b in (1.0, 4.0)]
    assert min(means[1]) > max(means[0])


@pytest.mark.parametrize("layout", ["apart", "together"])
def test_littles_law_and_work_that_is_done(layout):
    """`L = lambda W`, and machines are busy for as long as their pictures' calls, whatever the rule."""
    pools = LAYOUTS[layout].pools
    groups = {p: [MachineGroup(kind(), 3)] for p in pools}
    seen = simulate(demand(12.0), LAYOUTS[layout], groups, 0.4, 2500, 500, 1)
    assert seen.present == pytest.approx(seen.rate * seen.latencies.mean(), rel=0.05)
    assert seen.escalated.mean() == pytest.approx(0.4, abs=0.03)
    steps = {"new": 1, "student": 4, "score": 1, "teacher": 20 * 0.4, "decode": 0.4}
    for pool, stages in pools.items():
        due = sum(12.0 * steps[s] / seen.fill[s] * kind().mean(s) for s in stages) / 3
        assert seen.busy[pool] == pytest.approx(due, rel=0.05)


def test_a_picture_alone_takes_its_steps():
    trace = Trace([1.0, 100.0], [False, True])
    seen = simulate(demand(1.0), LAYOUTS["together"], {"machine": [MachineGroup(kind(), 1)]}, 0.0, trace=trace)
    draft = 0.01 + 4 * 0.05 + 0.06
    assert seen.latencies == pytest.approx([draft, draft + 20 * 0.08 + 0.05])
    apart = simulate(
        demand(1.0), LAYOUTS["apart"], {p: [MachineGroup(kind(), 1)] for p in LAYOUTS["apart"].pools}, 0, trace=trace
    )
    assert apart.latencies == pytest.approx(seen.latencies)


def test_two_at_once_share_every_call():
    trace = Trace([1.0, 1.0], [True, True])
    seen = simulate(demand(1.0), LAYOUTS["together"], {"machine": [MachineGroup(kind(), 1)]}, 0.0, trace=trace)
    # The first has begun to read its prompt alone; then the second's is read, and they go on together.
    assert seen.latencies.max() == pytest.approx(0.02 + 4 * 0.05 + 0.06 + 20 * 0.08 + 0.05)
    assert seen.fill["teacher"] == 2


def test_recorded_times_are_replayed_in_their_order():
    times = (1.0, 2.0, 3.0)
    machine = MachineGroup(Kind("recorded", 1.0, 1, {**ZERO, "score": times}), 1)
    trace = Trace([10.0 * i for i in range(1, 7)], [False] * 6)
    seen = simulate(demand(1.0), LAYOUTS["apart"], in_front_of(machine), 0.0, trace=trace)
    first = times.index(seen.latencies[0])
    assert seen.latencies == pytest.approx([times[(first + i) % 3] for i in range(6)])


def test_the_same_seed_is_the_same_run():
    a, b, c = (queue(2, 1.5, 1.0, s, 1000) for s in (3, 3, 4))
    assert (a.latencies == b.latencies).all()
    assert (a.latencies != c.latencies).any()


def test_weights_split_a_pool():
    kinds = [
        MachineGroup(Kind(n, 1.0, 1, {**ZERO, "score": (t,)}), 50, w) for n, t, w in (("a", 1.0, 0.25), ("b", 2.0, 0.75))
    ]
    seen = simulate(plain(5.0), LAYOUTS["apart"], in_front_of(*kinds), 0.0, 4000, 200)
    assert np.isclose(seen.latencies, 1.0).mean() == pytest.approx(0.25, abs=0.03)


def test_the_rule_is_the_engines():
    """A full teacher's batch and a single draft: the draft waits while others go ahead `patience` times, no longer."""
    rule = EngineRule()
    ready = {s: [] for s in STAGES}
    ready["teacher"] = [SimulatedRequest(i, float(i), True, ("teacher",)) for i in range(10)][::-1]
    ready["student"] = [SimulatedRequest(10, 10.0, False, ("student",))]
    order = []
    for _ in range(2 * (PATIENCE + 1)):
        stage, batch = rule(ready, 8, 0.0)
        order.append(stage)
        assert [p.index for p in batch] == (list(range(8)) if stage == "teacher" else [10])
    assert order == (["teacher"] * PATIENCE + ["student"]) * 2


def test_machines_for_other_pools_are_refused():
    with pytest.raises(SettingError, match="oracle"):
        simulate(demand(1.0), LAYOUTS["apart"], {"student": [MachineGroup(kind(), 1)]}, 0.0)


def test_an_exponential_machine_is_not_a_constant_one():
    draws = exponential(1.0)("score", np.random.default_rng(0))
    assert np.mean([draws() for _ in range(4000)]) == pytest.approx(1.0, abs=0.08)
