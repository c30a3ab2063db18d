"""`allaprima calibrate`: held-out drafts, scored, to a threshold for a budget."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from allaprima.calibration.artifact import Calibration
from allaprima.cascade.job import Request
from allaprima.cascade.policy import AlwaysPolicy, Decision
from allaprima.core.errors import PromptError, SettingError
from allaprima.data.prompts import read_prompts
from allaprima.pipeline import AdaptivePipeline


def calibrate_command(
    budget: float, card: str, prompts_file: str | None, samples: int, seed: int,
    student_steps: int | None, steps: int | None, batch_size: int | None, out: Path,
) -> None:  # fmt: skip
    """Paint and score drafts; write the artifact."""
    console = Console(stderr=True, highlight=False)
    if not 10 <= samples <= 1_000_000:
        raise SettingError(f"samples={samples!r} is out of range: 10..1000000; the paper finds 500 enough.")
    pipe = AdaptivePipeline.from_card(card)
    assert pipe.card is not None
    changes = {"student_steps": student_steps, "teacher_steps": steps, "batch_size": batch_size}
    settings = dataclasses.replace(pipe.settings, **{k: v for k, v in changes.items() if v is not None})
    if prompts_file is not None:
        prompts = [row.prompt for row in read_prompts(prompts_file)]
    else:
        prompts = [f"{c}, {s}" for c in pipe.card.known_concepts() for s in pipe.card.styles]
    if not prompts:
        raise PromptError("no prompts to calibrate on: give --prompts-file; this card doesn't say what it knows.")
    # A fixed stride through the list, so that 500 of 1,124 prompts touch every concept and style alike.
    chosen = [prompts[(i * 7919) % len(prompts)] for i in range(samples)]
    requests = [Request(p, seed + i, "", i) for i, p in enumerate(chosen)]
    scores: list[float] = []
    with Progress(console=console) as progress:
        drafts = pipe.stream(requests, settings, AlwaysPolicy(Decision.ACCEPT))
        tracked = progress.track(drafts, total=samples, description="scoring drafts")
        scores.extend(result.score for result in tracked if result.score is not None)
    digest = hashlib.sha256("\n".join(chosen).encode()).hexdigest()
    made = Calibration.make(
        scores, budget, settings.student_steps, settings.teacher_steps,
        pipe.student_settings(settings), pipe.fingerprints(), digest,
    )  # fmt: skip
    made.save(out)
    low, high = made.interval
    console.print(
        f"threshold {made.threshold:.4f} (95 % interval {low:.4f}..{high:.4f}) sends {made.percentile:.0f} % to the teacher:"
        f" {budget:g} mean steps. Written to {out}"
    )
