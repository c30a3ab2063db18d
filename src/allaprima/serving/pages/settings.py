"""What the demo page is told: the card, what a budget means, where held-out scores lie, prompts to try.

    {"card", "width", "height", "student_steps", "strategy", "threshold", "examples", "key_needed", "prompt_chars",
     "budget": {"unit", "default", "table": [{"budget", "share", "threshold", "seconds"}, ...]} or null,
     "scores": {"low", "high", "counts"} or null}

The table has every place of the page's slider: the page computes nothing about budgets itself, so it can't disagree with
the server. There is none where a budget can't be chosen: without a calibration, or with a policy fitted to one budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from allaprima.calibration.artifact import Calibration
from allaprima.calibration.budget import Prices
from allaprima.core.errors import AllaprimaError
from allaprima.data.prompts import read_prompts
from allaprima.pipeline import AdaptivePipeline

PLACES = 32
"""Of the slider, at most about so many."""
BINS = 36
"""Of the histogram of scores."""
EXAMPLES = 7
USUAL = ("a red apple on a wooden table", "a lighthouse at dusk", "an owl in a snowy forest", "a bowl of ramen, watercolour")
"""Prompts for cards that bring none (`demo.txt` beside the card)."""


@dataclass(frozen=True)
class ImageSeconds:
    """What a picture takes when nobody else is served, where it has been measured."""

    draft: float | None
    escalation: float | None

    def mean(self, share: float) -> float | None:
        """Of a picture, when `share` of the drafts go to the teacher; None until all of it was measured."""
        if self.draft is None or (share > 0 and self.escalation is None):
            return None
        return self.draft + share * (self.escalation or 0.0)


class StageTimes(Protocol):
    """What is read of an engine's snapshot: batches and seconds by stage, as `cascade.job.Stage` names them."""

    @property
    def batches(self) -> Mapping[str, int]: ...

    @property
    def seconds(self) -> Mapping[str, float]: ...


def seconds_of(measured: StageTimes, student_steps: int, teacher_steps: int) -> ImageSeconds:
    """A picture's seconds from the mean batch of each stage: batches have one shape, so a lone picture's takes as long."""

    def batch(stage: str) -> float | None:
        n = measured.batches.get(stage, 0)
        return measured.seconds.get(stage, 0.0) / n if n else None

    def total(*parts: tuple[str, int]) -> float | None:
        each = [(batch(stage), times) for stage, times in parts]
        return None if any(s is None for s, _ in each) else sum(times * (s or 0.0) for s, times in each)

    return ImageSeconds(
        total(("new", 1), ("student", student_steps), ("score", 1)), total(("teacher", teacher_steps), ("decode", 1))
    )


def demo_settings(
    pipe: AdaptivePipeline,
    name: str,
    key_needed: bool = False,
    prompt_chars: int | None = None,
    measured: StageTimes | None = None,
    budget: float | None = None,
) -> dict[str, Any]:
    """JSON-ready. `prompt_chars`: the longest prompt that is taken. `measured`: an engine's snapshot, for the seconds.

    `budget`: where the slider begins; None is the calibration's.
    """
    s, own = pipe.settings, pipe.calibration
    seconds = ImageSeconds(None, None) if measured is None else seconds_of(measured, s.student_steps, s.teacher_steps)
    return {
        "card": name,
        "width": s.width,
        "height": s.height,
        "student_steps": s.student_steps,
        "strategy": s.strategy,
        "threshold": None if own is None else own.threshold,
        "examples": examples(pipe),
        "key_needed": key_needed,
        "prompt_chars": prompt_chars,
        "budget": None if own is None else _budget(pipe, own, seconds, own.budget if budget is None else budget),
        "scores": None if own is None else histogram(own),
    }


def _budget(pipe: AdaptivePipeline, own: Calibration, seconds: ImageSeconds, default: float) -> dict[str, Any] | None:
    if own.policy is not None:
        return None
    action = pipe.action_settings(pipe.settings)
    try:
        prices = own.prices_for(action)
        # What a request would be refused with: a calibration of other models, or of a draft painted otherwise.
        own.check(pipe.student_settings(pipe.settings), pipe.fingerprints())
    except AllaprimaError:
        return None
    rows = [
        {
            "budget": budget,
            "share": prices.share_for(budget),
            "threshold": own.threshold_for_budget(budget, action),
            "seconds": seconds.mean(prices.share_for(budget)),
        }
        for budget in places(prices, default)
    ]
    return {"unit": prices.unit, "default": default, "table": rows}


def places(prices: Prices, default: float) -> list[float]:
    """Budgets from the student alone to everything escalated, in round steps (1, 2 or 5 times a power of ten)."""
    low, high = prices.draft, prices.draft + prices.escalation
    least = (high - low) / PLACES
    power = 10.0 ** math.floor(math.log10(least))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= least)
    between = [round(k * step, 10) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    # Of places that lie closer than rounding can tell, one.
    return sorted({low, high, default} | {b for b in between if min(abs(b - x) for x in (low, high, default)) > step / 100})


def histogram(own: Calibration) -> dict[str, Any]:
    """How many held-out drafts scored how much, in bins of one width from the lowest score to the highest."""
    counts, edges = np.histogram(own.scores, bins=BINS)
    return {"low": float(edges[0]), "high": float(edges[-1]), "counts": [int(n) for n in counts]}


def examples(pipe: AdaptivePipeline) -> list[str]:
    """Prompts to try: the first lines of `demo.txt` beside the card."""
    beside = None if pipe.card is None else pipe.card.beside("demo.txt")
    if beside is None or not beside.is_file():
        return list(USUAL)
    return [row.prompt for row in read_prompts(beside)][:EXAMPLES]
