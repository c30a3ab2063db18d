"""Pictures a second that a server sustains at a latency objective: step-level batching against servers without.

    python -m benchmarks.serving [--json] [--prompts FILE] [--objective 6] [--seconds 40] [--repeats 3] [SIDE ...]

One process, one set of weights, sides in turns:

- `teacher`: first come, first served, one pipeline call a request: the teacher's DDIM, 50 steps, at batch size 1, the
  fastest for one picture;
- `requests`: the same with the cascade in place of the teacher;
- `calls`: the cascade, all waiting requests (at most a batch) in one call: batching without step-level batching;
- `engine`: `allaprima.serving.engine`, the same cascade, settings and threshold.

Arrivals are open-loop: a Poisson process that doesn't wait for anybody; a latency runs from when a request was due to
arrive to when its picture is there. A rate is sustained if the 95th percentile of latencies is within the objective. Each
side's capacity (all requests at once) bounds a bisection; every repeat draws arrivals anew, the same ones for each side and
rate in units of 1 / rate. Ratios are of one repeat; medians and spread are printed.
"""

from __future__ import annotations

import argparse
import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from allaprima.bundled.emoji.dataset import STYLES, known_concepts
from allaprima.cascade.request import GenerationRequest
from allaprima.core.errors import SettingError
from allaprima.pipeline import AdaptivePipeline
from allaprima.serving.engine import Engine
from allaprima.serving.handle import EngineRequest, Event, Failed, Finished
from allaprima.serving.queue import EngineLimits
from benchmarks.overhead import spread

SIDES = ("teacher", "requests", "calls", "engine")
PERCENTILE = 95
PROBES = 5
"""Rates tried a side and repeat."""
Done = Callable[[Exception | None], None]


class Server(Protocol):
    """Takes requests; says when each picture is there."""

    def submit(self, index: int, done: Done) -> None:
        """Never waits; any thread calls `done(None)` when the picture of request `index` is there, or with why it isn't."""
        ...

    def report(self) -> dict[str, Any]:
        """Return what it says of itself."""
        ...

    def close(self) -> None:
        """Release its threads."""
        ...


class OneThread:
    """Requests in their order, at most `size` of them a call of `paint(indices)`."""

    def __init__(self, paint: Callable[[Sequence[int]], object], size: int = 1) -> None:
        self._paint, self._size = paint, size
        self._waiting: queue.SimpleQueue[tuple[int, Done] | None] = queue.SimpleQueue()
        self._calls = self._rows = 0
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < self._size and not self._waiting.empty():
                more = self._waiting.get()
                if more is None:
                    self._waiting.put(None)
                    break
                batch.append(more)
            error = None
            try:
                self._paint([i for i, _ in batch])
            except Exception as e:
                error = e
            self._calls, self._rows = self._calls + 1, self._rows + len(batch)
            for _, done in batch:
                done(error)

    def submit(self, index: int, done: Done) -> None:
        """See `Server`."""
        self._waiting.put((index, done))

    def report(self) -> dict[str, Any]:
        """Return the requests of a call."""
        return {"requests_a_call": self._rows / max(self._calls, 1)}

    def close(self) -> None:
        """End its thread, after what waits."""
        self._waiting.put(None)
        self._thread.join()


class Stepwise:
    """The engine."""

    def __init__(self, pipe: AdaptivePipeline, ask: Callable[[int], EngineRequest], in_flight: int) -> None:
        self._engine, self._ask = Engine(pipe, EngineLimits(queue=100_000, in_flight=in_flight)), ask
        self._engine.start()

    def submit(self, index: int, done: Done) -> None:
        """See `Server`."""

        def listen(event: Event) -> None:
            if isinstance(event, Finished | Failed):
                done(event.error if isinstance(event, Failed) else None)

        self._engine.submit([self._ask(index)])[0].add_listener(listen)

    def report(self) -> dict[str, Any]:
        """Batch fill, and the share of the working time outside of networks' calls."""
        now = self._engine.snapshot()
        inside = sum(now.seconds.values())
        return {
            "fill": dict(now.fill),
            "outside_machine": now.outside_seconds / max(inside + now.outside_seconds, 1e-9),
            "mean_teacher_steps": now.mean_teacher_steps,
        }

    def close(self) -> None:
        """Stop it."""
        self._engine.stop()


@dataclass(frozen=True)
class Trial:
    """What became of some arrivals."""

    rate: float
    """Asked for, pictures a second."""
    sustained: float
    """Pictures a second from the first arrival to the last picture."""
    percentile: float
    """Of latencies, seconds."""


def trial(server: Server, gaps: NDArray[np.float64], rate: float) -> Trial:
    """Send requests `gaps / rate` seconds after one another; `rate` infinite: all at once. Raises a picture's error."""
    due = np.cumsum(gaps) / rate if np.isfinite(rate) else np.zeros(len(gaps))
    ends, left, over = np.zeros(len(gaps)), threading.Semaphore(0), time.perf_counter
    begun, wrong = over(), list[Exception]()

    def done(i: int, error: Exception | None) -> None:
        ends[i] = over() - begun
        wrong.extend([] if error is None else [error])
        left.release()

    for i, moment in enumerate(due.tolist()):
        time.sleep(max(0.0, moment - (over() - begun)))
        server.submit(i, partial(done, i))
    for _ in gaps:
        left.acquire()
    if wrong:
        raise wrong[0]
    return Trial(rate, len(gaps) / float(ends.max() - due[0]), float(np.percentile(ends - due, PERCENTILE)))


def highest(server: Server, gaps: Callable[[float], NDArray[np.float64]], objective: float, probes: int) -> dict[str, Any]:
    """Return the highest rate found that is sustained, by bisection below what the server can do at all.

    `gaps(rate)`: exponential gaps of mean 1, as many as a trial at that rate takes.
    """
    capacity = trial(server, gaps(np.inf), np.inf).sustained
    low, high, kept, tried = 0.0, capacity, None, list[Trial]()
    for _ in range(probes):
        rate = (low + high) / 2 if tried else 0.8 * capacity
        found = trial(server, gaps(rate), rate)
        tried.append(found)
        if found.percentile <= objective:
            low, kept = rate, found
        else:
            high = rate
    return {
        "capacity": capacity,
        "sustained": 0.0 if kept is None else kept.rate,
        "percentile": None if kept is None else kept.percentile,
        "trials": [vars(t) for t in tried],
        **server.report(),
    }


def prompts_of(path: Path | None) -> list[str]:
    """Return a file's lines; without one, captions of the bundled card."""
    if path is None:
        concepts = known_concepts()
        return [f"{concepts[(i * 37) % len(concepts)]}, {STYLES[i % 4]}" for i in range(4 * len(concepts))]
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if line]
    if not found:
        raise SettingError(f"{path} holds no prompts: one a line is due.")
    return found


def server_of(
    side: str, pipe: AdaptivePipeline, prompts: Sequence[str], budget: float, batch_size: int, in_flight: int
) -> Server:
    """One of the sides."""
    settings = pipe.settings.changed(batch_size=batch_size)

    def told(indices: Sequence[int]) -> dict[str, Any]:
        return {"prompt": [prompts[i % len(prompts)] for i in indices], "seed": list(indices), "output_type": "pt"}

    if side == "teacher":
        plain = {"teacher_last_time": None, "teacher_guidance_interval": None}
        return OneThread(
            lambda i: pipe(
                **told(i), mode="teacher-only", teacher_solver="ddim", num_inference_steps=50, batch_size=1, **plain
            )
        )
    if side == "requests":
        return OneThread(lambda i: pipe(**told(i), budget=budget, batch_size=1))
    if side == "calls":
        return OneThread(lambda i: pipe(**told(i), budget=budget, batch_size=batch_size), batch_size)
    policy = pipe.policy(settings, budget=budget)
    return Stepwise(
        pipe, lambda i: EngineRequest(GenerationRequest(prompts[i % len(prompts)], i), settings, policy), in_flight
    )


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """All sides, repeat by repeat."""
    pipe, prompts = AdaptivePipeline.from_card(args.card), prompts_of(args.prompts)
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in args.sides}
    for repeat in range(args.repeats):

        def gaps(rate: float, repeat: int = repeat) -> NDArray[np.float64]:
            n = args.at_once if not np.isfinite(rate) else max(args.least, round(rate * args.seconds))
            return np.random.default_rng(repeat).exponential(size=n)

        for side in args.sides if repeat % 2 == 0 else reversed(args.sides):
            server = server_of(side, pipe, prompts, args.budget, args.batch_size, args.in_flight)
            try:
                trial(server, gaps(np.inf)[:2], np.inf)
                found[side].append(highest(server, gaps, args.objective, args.probes))
            finally:
                server.close()
            said = found[side][-1]
            words = f"repeat {repeat + 1}, {side}: {said['sustained']:.2f} a second of {said['capacity']:.2f}"
            print(words, file=sys.stderr, flush=True)
    rates = {side: [r["sustained"] for r in rows] for side, rows in found.items()}
    ratios = {
        f"engine_over_{side}": spread([a / max(b, 1e-9) for a, b in zip(rates["engine"], rates[side], strict=True)])
        for side in args.sides if side != "engine" and "engine" in rates
    }  # fmt: skip
    return {
        "objective": args.objective,
        "batch_size": args.batch_size,
        "budget": args.budget,
        "sustained": {side: spread(r) for side, r in rates.items()},
        "ratios": ratios,
        "runs": found,
    }


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("sides", nargs="*", default=list(SIDES), help=f"some of {', '.join(SIDES)}; default all")
    p.add_argument("--json", action="store_true")
    p.add_argument("--card", default="emoji")
    p.add_argument("--prompts", type=Path, help="a prompt a line; default: captions of the bundled card")
    p.add_argument("--objective", type=float, default=6.0, help="seconds that 95 %% of the latencies are within")
    p.add_argument("--budget", type=float, default=8.0, help="mean steps of the cascade")
    p.add_argument("--batch-size", type=int, default=4, help="of `calls` and `engine`")
    p.add_argument("--in-flight", type=int, default=32, help="jobs the engine paints at once")
    p.add_argument("--seconds", type=float, default=40.0, help="of arrivals a trial")
    p.add_argument("--least", type=int, default=24, help="arrivals a trial, at least")
    p.add_argument("--at-once", type=int, default=32, help="requests that measure a capacity")
    p.add_argument("--probes", type=int, default=PROBES, help="rates tried a side and repeat")
    p.add_argument("--repeats", type=int, default=3)
    args = p.parse_intermixed_args()
    odd = next((s for s in args.sides if s not in SIDES), None)
    if odd is not None:
        raise SettingError(f"side {odd!r} is not known: {', '.join(SIDES)} are.")
    result = measured(args)
    if args.json:
        print(json.dumps(result, indent=1))
        return
    for side, x in result["sustained"].items():
        print(f"{side}: {x['median']:.2f} pictures a second ({x['min']:.2f}..{x['max']:.2f})")
    for name, x in result["ratios"].items():
        print(f"{name.replace('_', ' ')}: {x['median']:.2f} ({x['min']:.2f}..{x['max']:.2f})")


if __name__ == "__main__":
    main()
