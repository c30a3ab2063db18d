"""What the cascade costs beside its networks, and what batching buys.

    python -m benchmarks.overhead [--json] [--prompts 64] [--repeats 3]

Side A paints all prompts in one call; side B paints the same prompts, same seeds and threshold, one a call at batch
size 1. The sides alternate; medians and spread are printed. Time in networks is measured around every forward pass of
student, teacher, text encoder, autoencoder and oracle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

from allaprima.bundled.emoji.dataset import STYLES, known_concepts
from allaprima.pipeline import AdaptivePipeline


class NetworkClock:
    """Sums the seconds spent inside the given modules' calls (outermost only)."""

    def __init__(self, pipe: Any) -> None:
        self.seconds, self._depth, self._start = 0.0, 0, 0.0
        for net in (pipe.student.unet, pipe.teacher.unet, pipe.student.text_encoder, pipe.oracle.scorer):
            net.register_forward_pre_hook(self._enter)
            net.register_forward_hook(self._leave)
        decode = pipe.student.vae.decode

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._enter()
            try:
                return decode(*args, **kwargs)
            finally:
                self._leave()

        pipe.student.vae.decode = timed

    def _enter(self, *_: Any) -> None:
        if self._depth == 0:
            self._start = time.perf_counter()
        self._depth += 1

    def _leave(self, *_: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.seconds += time.perf_counter() - self._start


def main() -> None:
    """Run and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", action="store_true")
    p.add_argument("--prompts", type=int, default=64)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--budget", type=float, default=15.0)
    args = p.parse_args()
    pipe = AdaptivePipeline.from_card("emoji")
    clock = NetworkClock(pipe)
    concepts = known_concepts()
    prompts = [f"{concepts[(i * 37) % len(concepts)]}, {STYLES[i % 4]}" for i in range(args.prompts)]
    pipe(prompts[:16], seed=0, budget=args.budget)
    outside: list[float] = []
    together: list[float] = []
    alone: list[float] = []
    for _ in range(args.repeats):
        clock.seconds, begun = 0.0, time.perf_counter()
        pipe(prompts, seed=0, budget=args.budget)
        together.append(time.perf_counter() - begun)
        outside.append(1 - clock.seconds / together[-1])
        begun = time.perf_counter()
        for i, prompt in enumerate(prompts):
            pipe(prompt, seed=i, budget=args.budget, batch_size=1)
        alone.append(time.perf_counter() - begun)
    ratios = [a / t for a, t in zip(alone, together, strict=True)]
    result = {
        "prompts": args.prompts,
        "repeats": args.repeats,
        "outside_networks": {"median": statistics.median(outside), "min": min(outside), "max": max(outside)},
        "batched_over_single_throughput": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "seconds_together": statistics.median(together),
        "seconds_one_a_call": statistics.median(alone),
    }
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        o, r = result["outside_networks"], result["batched_over_single_throughput"]
        print(f"time outside the networks: {o['median']:.1%} ({o['min']:.1%}..{o['max']:.1%})")
        print(f"one call of {args.prompts} against one prompt a call: {r['median']:.2f}x ({r['min']:.2f}..{r['max']:.2f})")


if __name__ == "__main__":
    main()
