"""What the cascade costs beside its networks, and what batching buys.

    python -m benchmarks.overhead [--json] [--prompts 64] [--alone 16] [--repeats 3]

Side A paints all prompts in one call. Side B paints the first of the same prompts, same seeds and threshold, one a call
as a newcomer would call it; the pictures are the same to the bit, which is checked. Side C does so at batch size 1,
the fastest way to paint one picture (its bits may differ in the last place). Seconds a picture are compared; the sides
alternate; medians and spread are printed. Time in networks is measured around every forward pass of student, teacher,
text encoder, autoencoder and oracle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from allaprima.bundled.emoji.dataset import STYLES, known_concepts
from allaprima.pipeline import AdaptivePipeline


class NetworkClock:
    """Sums the seconds spent inside the given modules' calls (outermost only)."""

    def __init__(self, pipe: Any) -> None:
        self.seconds, self._depth, self._start = 0.0, 0, 0.0
        for net in (pipe.student.unet, pipe.teacher.unet, pipe.student.text_encoder):
            net.register_forward_pre_hook(self._enter)
            net.register_forward_hook(self._leave)
        # An oracle is networks and little else, whatever its parts are called.
        self._time(pipe.student.vae, "decode")
        self._time(pipe.oracle, "score")

    def _time(self, owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._enter()
            try:
                return call(*args, **kwargs)
            finally:
                self._leave()

        setattr(owner, name, timed)

    def _enter(self, *_: Any) -> None:
        if self._depth == 0:
            self._start = time.perf_counter()
        self._depth += 1

    def _leave(self, *_: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.seconds += time.perf_counter() - self._start


def seconds_each(pipe: AdaptivePipeline, prompts: Sequence[str], **settings: Any) -> tuple[float, list[Tensor]]:
    """Seconds a picture when each prompt is a call of its own, and the pictures."""
    images: list[Tensor] = []
    begun = time.perf_counter()
    for i, prompt in enumerate(prompts):
        image = pipe(prompt, seed=i, **settings).results[0].image
        assert image is not None
        images.append(image)
    return (time.perf_counter() - begun) / len(prompts), images


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median with the ends."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    """Run and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", action="store_true")
    p.add_argument("--prompts", type=int, default=64)
    p.add_argument("--alone", type=int, default=16, help="how many of them are also painted one a call")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--budget", type=float, default=15.0)
    args = p.parse_args()
    pipe = AdaptivePipeline.from_card("emoji")
    clock = NetworkClock(pipe)
    concepts = known_concepts()
    prompts = [f"{concepts[(i * 37) % len(concepts)]}, {STYLES[i % 4]}" for i in range(args.prompts)]
    pipe(prompts[: pipe.settings.batch_size], seed=0, budget=args.budget)
    outside: list[float] = []
    together: list[float] = []
    default: list[float] = []
    single: list[float] = []
    same = True
    for _ in range(args.repeats):
        clock.seconds, begun = 0.0, time.perf_counter()
        whole = pipe(prompts, seed=0, budget=args.budget)
        seconds = time.perf_counter() - begun
        outside.append(1 - clock.seconds / seconds)
        together.append(seconds / len(prompts))
        one, images = seconds_each(pipe, prompts[: args.alone], budget=args.budget)
        default.append(one)
        pairs = zip(images, whole.results, strict=False)
        same = same and all(r.image is not None and torch.equal(x, r.image) for x, r in pairs)
        single.append(seconds_each(pipe, prompts[: args.alone], budget=args.budget, batch_size=1)[0])
    result = {
        "prompts": args.prompts,
        "alone": args.alone,
        "repeats": args.repeats,
        "batch_size": pipe.settings.batch_size,
        "outside_networks": spread(outside),
        "seconds_a_picture": {k: spread(v) for k, v in (("together", together), ("default", default), ("single", single))},
        "throughput_over_one_prompt_a_call": spread([a / t for a, t in zip(default, together, strict=True)]),
        "throughput_over_one_prompt_a_call_at_batch_size_1": spread([a / t for a, t in zip(single, together, strict=True)]),
        "same_bits_together_and_one_a_call": same,
    }
    if args.json:
        print(json.dumps(result, indent=1))
        return

    def say(what: str, x: dict[str, float], form: str) -> None:
        print(f"{what}: {x['median']:{form}} ({x['min']:{form}}..{x['max']:{form}})")

    say("time outside the networks", result["outside_networks"], ".1%")
    say("throughput over one prompt a call", result["throughput_over_one_prompt_a_call"], ".2f")
    say("the same at batch size 1", result["throughput_over_one_prompt_a_call_at_batch_size_1"], ".2f")
    print(f"same bits together and one a call: {same}")


if __name__ == "__main__":
    main()
