"""A fleet picture by picture: what the formulas of `fleet.queueing` only approximate.

Machines are simpy processes. One takes pictures from its queue as long as it has a place for them, asks the scheduling rule
who steps together, computes for as long as such a call took when it was recorded, and goes on; an idle machine is woken by
an arrival. The machines of a pool share a queue; where each does it all, a picture goes to the one that has the fewest.
Pictures stay on their machine until the pool's work is done. Times of calls are replayed in
the order they were recorded, round and round from a random place, so that slow spells stay slow spells.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import simpy

from allaprima.core.errors import SettingError
from allaprima.fleet.workload import IN_FLIGHT, Demand, Kind, Layout, doors
from allaprima.serving.batching import PATIENCE, choose, oldest_first, passed_after
from allaprima.serving.batching import BatchGroup as Together

Draw = Callable[[], float]
"""Seconds of the next call of one stage."""


@dataclass
class SimulatedRequest:
    """One request on its way."""

    index: int
    arrived: float
    escalated: bool
    path: tuple[str, ...]
    """Stages it still goes through, the present one first."""
    left: int = 1
    """Calls left at the present stage."""
    finished: float = float("nan")


class Rule(Protocol):
    """Who steps together next; a machine asks its own after every call."""

    def __call__(
        self, ready: Mapping[str, Sequence[SimulatedRequest]], batch: int, now: float
    ) -> tuple[str, Sequence[SimulatedRequest]]:
        """Of the pictures at each stage (longest there first, at least one in all): a stage and at most `batch` of them."""
        ...


class EngineRule:
    """The engine's own (`serving.batching`), for one machine."""

    def __init__(self, patience: int = PATIENCE) -> None:
        self._patience = patience
        self._passed: Mapping[str, int] = {}

    def __call__(
        self, ready: Mapping[str, Sequence[SimulatedRequest]], batch: int, now: float
    ) -> tuple[str, Sequence[SimulatedRequest]]:
        """Return what `Engine` does at a step boundary, with pictures in place of jobs."""
        groups = [
            Together(stage, stage, len(there), batch, min(p.arrived for p in there), self._passed.get(stage, 0))
            for stage, there in ready.items()
            if there
        ]
        chosen = choose(groups, self._patience)
        assert chosen is not None
        self._passed = passed_after(groups, chosen)
        there = ready[chosen]
        return chosen, [there[i] for i in oldest_first([p.arrived for p in there], batch)]


@dataclass(frozen=True)
class MachineGroup:
    """Machines of one kind in one pool; `machines` share a queue. `draws`: in place of the kind's times, for tests."""

    kind: Kind
    machines: int
    weight: float = 1.0
    """Share of the pool's pictures that comes here; those of a pool add up to 1."""
    draws: Callable[[str, np.random.Generator], Draw] | None = None

    def draw(self, stage: str, rng: np.random.Generator) -> Draw:
        """Return times of one machine's calls of one stage."""
        if self.draws is not None:
            return self.draws(stage, rng)
        times = self.kind.seconds[stage]
        start = int(rng.integers(len(times)))
        return _around(times, start).__next__


def _around(times: Sequence[float], start: int) -> Iterator[float]:
    while True:
        yield from times[start:]
        yield from times[:start]


@dataclass(frozen=True)
class Trace:
    """Arrivals that happened, in place of random ones."""

    times: Sequence[float]
    """Seconds, rising."""
    escalated: Sequence[bool]


@dataclass(frozen=True)
class SimulationReport:
    """What a simulation saw; times in seconds."""

    latencies: np.ndarray
    """`(N,)` from arrival to picture, in the order of arrivals."""
    escalated: np.ndarray
    """`(N,)` bool."""
    busy: Mapping[str, float]
    """By pool: share of the machines' time in calls."""
    fill: Mapping[str, float]
    """By stage: mean pictures a call."""
    present: float
    """Mean number of pictures in the fleet."""
    rate: float
    """Arrivals a second while it was measured."""

    def quantile(self, level: float) -> float:
        """Of the latency."""
        return float(np.quantile(self.latencies, level))

    @property
    def p95(self) -> float:
        """The slowest of the quickest 95 of 100."""
        return self.quantile(0.95)


@dataclass
class _Count:
    """Sums over the time that is measured."""

    since: float = 0.0
    ended: float = 0.0
    present: int = 0
    changed: float = 0.0
    area: float = 0.0
    busy: dict[str, float] = field(default_factory=dict[str, float])
    calls: dict[str, int] = field(default_factory=dict[str, int])
    taken: dict[str, int] = field(default_factory=dict[str, int])

    def change(self, now: float, by: int) -> None:
        self.area += self.present * (now - self.changed)
        self.present, self.changed = self.present + by, now


class _Queue:
    """Pictures that wait for the machines that share it, and those of them that are idle."""

    def __init__(self) -> None:
        self.waiting: deque[SimulatedRequest] = deque()
        self.idle: deque[simpy.Event] = deque()
        self.there = 0
        """Pictures here or on its machines."""

    def put(self, picture: SimulatedRequest) -> None:
        self.there += 1
        self.waiting.append(picture)
        if self.idle:
            self.idle.popleft().succeed()


class Simulation:
    """One run: `count` pictures measured after the first `warm_up`; arrivals go on until the last of them is done."""

    def __init__(
        self, demand: Demand, layout: Layout, groups: Mapping[str, Sequence[MachineGroup]], share: float,
        count: int = 20_000, warm_up: int = 2_000, seed: int = 0, rule: Callable[[], Rule] = EngineRule,
        trace: Trace | None = None,
    ) -> None:  # fmt: skip
        if set(groups) != set(layout.pools) or not all(groups.values()):
            raise SettingError(
                f"machines for the pools {sorted(groups)}, but layout {layout.name} has {list(layout.pools)}."
            )
        self.demand, self.layout, self.groups, self.share = demand, layout, groups, share
        self.trace, self.rule = trace, rule
        self.count, self.warm_up = (count, warm_up) if trace is None else (len(trace.times), 0)
        self.rng = np.random.default_rng(seed)
        self.env, self.sums = simpy.Environment(), _Count()
        shared = layout.shared_queue
        self.queues = {p: [[_Queue() for _ in range(1 if shared else g.machines)] for g in gs] for p, gs in groups.items()}
        self.measured: list[SimulatedRequest] = []
        self.to_finish = self.count
        self.over = self.env.event()

    def run(self) -> SimulationReport:
        """Until the last measured picture is done. An overloaded fleet ends too, with latencies that grew all the time."""
        for pool, groups in self.groups.items():
            for queues, group in zip(self.queues[pool], groups, strict=True):
                for i in range(group.machines):
                    self.env.process(self._machine(pool, queues[i % len(queues)], group))
        self.env.process(self._arrivals())
        self.env.run(until=self.over)
        sums = self.sums
        sums.change(sums.ended, 0)
        time = sums.ended - sums.since
        machines = {p: sum(g.machines for g in gs) for p, gs in self.groups.items()}
        return SimulationReport(
            np.array([p.finished - p.arrived for p in self.measured]),
            np.array([p.escalated for p in self.measured]),
            {p: sums.busy.get(p, 0.0) / time / n for p, n in machines.items()},
            {s: sums.taken[s] / n for s, n in sums.calls.items()},
            sums.area / time,
            self.count / max(self.measured[-1].arrived - sums.since, 1e-12),
        )

    def _gaps(self) -> Iterator[float]:
        """Yield times between arrivals: gamma, of the demand's mean and variation."""
        if self.trace is not None:
            yield from np.diff(self.trace.times, prepend=0.0)
            return
        mean, cv2 = 1 / self.demand.rate, self.demand.burstiness
        while True:
            yield from np.full(1000, mean) if cv2 == 0 else self.rng.gamma(1 / cv2, mean * cv2, 1000)

    def _arrivals(self) -> Generator[simpy.Event, Any, None]:
        for index, gap in enumerate(self._gaps()):
            yield self.env.timeout(gap)
            picture = self._arrive(index)
            self.sums.change(self.env.now, 1)
            if index == self.warm_up:
                # From here on: what was summed before is of a fleet that was still filling.
                kept = self.sums.present
                self.sums = _Count(since=self.env.now, changed=self.env.now, present=kept)
            if self.warm_up <= index < self.warm_up + self.count:
                self.measured.append(picture)
            self._send(picture)

    def _arrive(self, index: int) -> SimulatedRequest:
        if self.trace is not None:
            escalated = bool(self.trace.escalated[index])
        else:
            escalated = not self.layout.student or bool(self.rng.random() < self.share)
        draft = ("student", "score") if self.layout.student else ()
        path = ("new", *draft, *(("teacher", "decode") if escalated else ()))
        return SimulatedRequest(index, self.env.now, escalated, path)

    def _send(self, picture: SimulatedRequest) -> None:
        """To the queue of the pool that does its next stage."""
        pool = self.layout.pool_of(picture.path[0])
        picture.left = self.demand.steps(picture.path[0], self.layout.student)
        groups = self.groups[pool]
        which = 0 if len(groups) == 1 else int(self.rng.choice(len(groups), p=[g.weight for g in groups]))
        queues = self.queues[pool][which]
        least = queues[0] if len(queues) == 1 else min(queues, key=lambda q: q.there)
        least.put(picture)

    def _machine(self, pool: str, queue: _Queue, group: MachineGroup) -> Generator[simpy.Event, Any, None]:
        stages = self.layout.pools[pool]
        counted, most = (doors(stages), 1) if self.layout.shared_queue else (stages, IN_FLIGHT)
        draws = {s: group.draw(s, self.rng) for s in stages}
        ready: dict[str, list[SimulatedRequest]] = {s: [] for s in stages}
        rule = self.rule()
        while True:
            places = most * group.kind.batch - sum(len(ready[s]) for s in counted)
            while queue.waiting and places > 0:
                picture = queue.waiting.popleft()
                ready[picture.path[0]].append(picture)
                places -= 1
            if not any(ready.values()):
                woken = self.env.event()
                queue.idle.append(woken)
                yield woken
                continue
            stage, batch = rule(ready, group.kind.batch, self.env.now)
            seconds = draws[stage]()
            yield self.env.timeout(seconds)
            self._count_call(pool, stage, len(batch), seconds)
            queue.there -= self._stepped(ready, stages, list(batch))

    def _count_call(self, pool: str, stage: str, taken: int, seconds: float) -> None:
        sums = self.sums
        sums.busy[pool] = sums.busy.get(pool, 0.0) + min(seconds, self.env.now - sums.since)
        sums.calls[stage] = sums.calls.get(stage, 0) + 1
        sums.taken[stage] = sums.taken.get(stage, 0) + taken

    def _stepped(
        self, ready: dict[str, list[SimulatedRequest]], stages: Sequence[str], batch: list[SimulatedRequest]
    ) -> int:
        """Each picture of a call one step further: it stays, goes to another stage here, or leaves; how many left.

        Those that leave are done or go to another pool.
        """
        leaving = 0
        for picture in batch:
            picture.left -= 1
            if picture.left:
                continue
            stage = picture.path[0]
            ready[stage].remove(picture)
            picture.path = picture.path[1:]
            if picture.path and picture.path[0] in stages:
                picture.left = self.demand.steps(picture.path[0], self.layout.student)
                ready[picture.path[0]].append(picture)
                continue
            leaving += 1
            if picture.path:
                self._send(picture)
            else:
                self._finish(picture)
        return leaving

    def _finish(self, picture: SimulatedRequest) -> None:
        picture.finished = self.env.now
        self.sums.change(self.env.now, -1)
        if self.warm_up <= picture.index < self.warm_up + self.count:
            self.to_finish -= 1
            if not self.to_finish:
                self.sums.ended = self.env.now
                self.over.succeed()


def simulate(
    demand: Demand, layout: Layout, groups: Mapping[str, Sequence[MachineGroup]], share: float,
    count: int = 20_000, warm_up: int = 2_000, seed: int = 0, rule: Callable[[], Rule] = EngineRule,
    trace: Trace | None = None,
) -> SimulationReport:  # fmt: skip
    """Run one fleet; `groups` by pool. The same seed gives the same run; a `trace` has its own count and no warm-up."""
    return Simulation(demand, layout, groups, share, count, warm_up, seed, rule, trace).run()
