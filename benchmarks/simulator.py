"""Does the simulator know how long the real engine takes, and do the formulas know what the simulator does?

    python -m benchmarks.simulator [--json] [--seconds 60] [--loads 0.5,0.8] [--record recorded.json]
    python -m benchmarks.simulator --formulas [--json]

The first runs the real engine on the bundled pair, in this process, twice a load with Poisson arrivals (a picture is asked
for whether or not earlier ones are finished): once to record how long each call of each stage takes, once to measure. Each
is a run of its own, so that times are never replayed against themselves. The simulator then gets the second run's arrivals
and decisions and the first run's times; their 95th percentiles are compared. A load is a share of what full batches could
paint, as measured before. The aim is a difference below 20 %. `--record` keeps the times of the last load for a `plan.yaml`.

The second needs no models: it puts fleets of one kind with given times at several loads, in every layout, and prints how far
the formulas' 95th percentile (`fleet.queueing`) is from the simulation's.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from allaprima.cascade.job import Stage
from allaprima.cascade.policy import ThresholdPolicy
from allaprima.cascade.request import GenerationRequest
from allaprima.fleet.plan_file import write_recording
from allaprima.fleet.planner import Planner, promises
from allaprima.fleet.simulator import MachineGroup, Trace, simulate
from allaprima.fleet.workload import LAYOUTS, STAGES, Choice, Demand, Kind, Layout, Recording
from allaprima.pipeline import AdaptivePipeline
from allaprima.serving.engine import Engine
from allaprima.serving.handle import EngineRequest, Event, Finished
from allaprima.serving.queue import EngineLimits

OUTSIDE = (0.3, 0.6, 0.8, 0.9)
"""Shares of the places taken, for `--formulas`."""


class CallClock:
    """Keeps the seconds of every call of every machine that a pipeline makes from now on."""

    def __init__(self, pipe: AdaptivePipeline) -> None:
        self.seconds: dict[str, list[float]] = {s: [] for s in STAGES}
        make = pipe.cascade

        def timed_cascade(*args: Any, **kwargs: Any) -> Any:
            cascade = make(*args, **kwargs)
            act = cascade.act

            def timed(stage: Stage, jobs: Sequence[Any]) -> None:
                begun = time.perf_counter()
                act(stage, jobs)
                self.seconds.setdefault(str(stage), []).append(time.perf_counter() - begun)

            setattr(cascade, "act", timed)  # noqa: B010 (a method, replaced)
            return cascade

        setattr(pipe, "cascade", timed_cascade)  # noqa: B010

    def take(self) -> dict[str, list[float]]:
        """Return what was recorded, and begin anew."""
        kept, self.seconds = self.seconds, {s: [] for s in STAGES}
        return kept


@dataclass
class Run:
    """Pictures of one run of the engine, in the order they were asked for."""

    arrived: list[float] = field(default_factory=list[float])
    """Seconds from the run's begin."""
    latencies: list[float] = field(default_factory=list[float])
    escalated: list[bool] = field(default_factory=list[bool])


class Bench:
    """A pair behind an engine; `policy` decides about drafts of `prompts`, drawn at random."""

    def __init__(self, pipe: AdaptivePipeline, policy: ThresholdPolicy, prompts: Sequence[str], seed: int = 0) -> None:
        self.pipe, self.policy, self.prompts = pipe, policy, prompts
        self.clock = CallClock(pipe)
        self.settings = pipe.settings
        self.rng = np.random.default_rng(seed)

    @classmethod
    def bundled(cls) -> Bench:
        """Return the bundled pair, half of whose drafts are escalated."""
        pipe = AdaptivePipeline.from_card("emoji")
        assert pipe.calibration is not None
        assert pipe.card is not None
        policy = pipe.calibration.policy_for(None, AdaptivePipeline.action_settings(pipe.settings))
        assert isinstance(policy, ThresholdPolicy)
        # The card's calibration escalates most drafts; half is a heavier test of who steps together.
        middle = statistics.median(pipe.calibration.scores)
        prompts = [f"{c}, {s}" for c in pipe.card.known_concepts() for s in pipe.card.styles]
        return cls(pipe, ThresholdPolicy(middle, policy.otherwise), prompts)

    def run(self, gaps: Sequence[float]) -> Run:
        """Ask for a picture after each gap, wait for all of them."""
        engine = Engine(self.pipe, EngineLimits(queue=100_000))
        engine.start()
        ended: dict[int, float] = {}
        lock = threading.Lock()
        run, handles = Run(), []
        begun = due = time.monotonic()
        for i, gap in enumerate(gaps):
            due += gap
            time.sleep(max(0.0, due - time.monotonic()))
            request = GenerationRequest(self.prompts[int(self.rng.integers(len(self.prompts)))], 7_000_000 + i, index=i)
            now = time.monotonic()
            (handle,) = engine.submit([EngineRequest(request, self.settings, self.policy)])

            def heard(event: Event, i: int = i, now: float = now) -> None:
                if isinstance(event, Finished):
                    with lock:
                        ended[i] = time.monotonic() - now

            handle.add_listener(heard)
            run.arrived.append(now - begun)
            handles.append(handle)
        results = [t.result() for t in handles]
        engine.stop()
        run.latencies = [ended[i] for i in range(len(handles))]
        run.escalated = [r.cost.evaluations.get("teacher", 0) > 0 for r in results]
        return run

    def capacity(self, pictures: int) -> float:
        """Pictures a second when all are asked for at once; also warms up, and isn't recorded."""
        begun = time.monotonic()
        self.run([0.0] * pictures)
        self.clock.take()
        return pictures / (time.monotonic() - begun)


def compare(bench: Bench, load: float, capacity: float, seconds: float) -> tuple[dict[str, Any], Recording]:
    """One load: record, measure, simulate."""
    rate = load * capacity
    count = max(20, int(seconds * rate / 2))
    bench.run(bench.rng.exponential(1 / rate, count).tolist())
    times = bench.clock.take()
    measured = bench.run(bench.rng.exponential(1 / rate, count).tolist())
    bench.clock.take()
    s = bench.settings
    recording = Recording(f"{platform.machine()}, {platform.system()}", s.batch_size, {k: times[k] for k in STAGES})
    kind = Kind("here", 1.0, s.batch_size, {k: tuple(v) for k, v in recording.seconds.items()}, measured=True)
    demand = Demand(rate, 1e6, s.student_steps, s.teacher_steps, s.teacher_steps)
    trace = Trace(measured.arrived, measured.escalated)
    seen = [
        simulate(demand, LAYOUTS["together"], {"machine": [MachineGroup(kind, 1)]}, 0.0, seed=i, trace=trace).latencies
        for i in range(5)
    ]
    simulated = float(np.median([np.quantile(x, 0.95) for x in seen]))
    real = float(np.quantile(measured.latencies, 0.95))
    return {
        "load": load, "pictures_a_second": rate, "pictures": count, "escalated": float(np.mean(measured.escalated)),
        "p95_engine": real, "p95_simulator": simulated, "difference": simulated / real - 1,
        "p50_engine": float(np.median(measured.latencies)), "p50_simulator": float(np.median(np.concatenate(seen))),
    }, recording  # fmt: skip


def engine_main(args: argparse.Namespace) -> None:
    """Against the real engine."""
    bench = Bench.bundled()
    capacity = bench.capacity(args.warm_up)
    if not args.json:
        print(f"full batches paint {capacity:.2f} a second", flush=True)
    rows: list[dict[str, Any]] = []
    recording: Recording | None = None
    for load in args.loads:
        row, recording = compare(bench, load, capacity, args.seconds)
        rows.append(row)
        if not args.json:
            print(
                f"load {load:.0%} ({row['pictures_a_second']:.2f}/s, {row['pictures']} pictures, {row['escalated']:.0%}"
                f" escalated): p95 {row['p95_engine']:.2f} s, simulated {row['p95_simulator']:.2f} s"
                f" ({row['difference']:+.0%}); median {row['p50_engine']:.2f} s, simulated {row['p50_simulator']:.2f} s",
                flush=True,
            )
    if args.record is not None and recording is not None:
        write_recording(args.record, recording)
    if args.json:
        print(json.dumps({"capacity": capacity, "rows": rows}, indent=1))


KINDS = (
    Kind(
        "quick steps", 1.0, 8, {"new": (0.01,), "student": (0.05,), "score": (0.06,), "teacher": (0.08,), "decode": (0.05,)}
    ),
    Kind("slow steps", 1.0, 16, {"new": (0.02,), "student": (0.2,), "score": (0.15,), "teacher": (0.2,), "decode": (0.1,)}),
)
"""Given, not measured."""


def formulas_at(kind: Kind, layout: Layout, share: float, machines: int, occupied: float, count: int) -> dict[str, Any]:
    """Return both 95th percentiles of a fleet whose largest pool has so many machines, that share of their places taken."""
    largest = "machine" if layout.name == "together" else "teacher"
    choice, low, high = Choice(0.0, share), 0.0, 100.0 * machines * kind.batch
    promise = promises(layout, share)[-1]

    def planner(rate: float) -> Planner:
        return Planner(Demand(rate, 1e6, 4, 20, 20, occupied_at_most=occupied), [kind])

    for _ in range(40):
        middle = (low + high) / 2
        fewest = planner(middle).fewest(layout, share, largest, kind)
        low, high = (middle, high) if fewest <= machines else (low, middle)
    p = planner(low)
    sizes = {name: p.fewest(layout, share, name, kind) for name in layout.pools}
    columns = p.columns(layout, choice, promise)
    chosen = [next(c for c in columns if c.pool == name and c.machines == n) for name, n in sizes.items()]
    formula = sum(c.seconds for c in chosen)
    groups = {name: [MachineGroup(kind, n)] for name, n in sizes.items()}
    seen = simulate(p.demand, layout, groups, share, count, count // 3)
    return {
        "kind": kind.name, "layout": layout.name, "share": share, "machines": sizes[largest], "occupied": occupied,
        "p95_formula": formula, "p95_simulator": seen.p95, "difference": formula / seen.p95 - 1,
    }  # fmt: skip


def formulas_main(args: argparse.Namespace) -> None:
    """Against the simulator."""
    rows: list[dict[str, Any]] = []
    for layout in LAYOUTS.values():
        for share in (0.1, 0.3, 0.7) if layout.student else (1.0,):
            for machines in (1, 4, 20):
                mine = [formulas_at(k, layout, share, machines, o, args.count) for k in KINDS for o in OUTSIDE]
                rows += mine
                if args.json:
                    continue
                cells = []
                for o in OUTSIDE:
                    off = [r["difference"] for r in mine if r["occupied"] == o]
                    cells.append(f"{min(off):+.0%}..{max(off):+.0%}")
                print(f"| {layout.name} | {share:.0%} | {machines} | " + " | ".join(cells) + " |", flush=True)
    if args.json:
        print(json.dumps(rows, indent=1))


def main() -> None:
    """Run and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", action="store_true")
    p.add_argument("--seconds", type=float, default=60, help="of arrivals, a load: half to record, half to measure")
    p.add_argument("--loads", type=lambda s: [float(x) for x in s.split(",")], default=[0.5, 0.8])
    p.add_argument("--warm-up", type=int, default=96, help="pictures asked for at once, to know what a full load is")
    p.add_argument("--record", type=Path, help="JSON of recorded times, for hardware.NAME.recorded of a plan.yaml")
    p.add_argument("--formulas", action="store_true")
    p.add_argument("--count", type=int, default=6000, help="pictures a simulation, with --formulas")
    args = p.parse_args()
    if args.formulas:
        formulas_main(args)
    else:
        engine_main(args)


if __name__ == "__main__":
    main()
