"""Generate every attempt that sequential policies are looked up in: drafts and tries of the teacher, scored on the way."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from allaprima.calibration.sequential import Attempts, AttemptTable
from allaprima.cascade.policy import Context, Decision, DraftFirstPolicy
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.result import Result
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import CalibrationError
from allaprima.pipeline import AdaptivePipeline

Judge = Callable[[Tensor, Sequence[str]], Tensor]
"""What an image is worth: `(images (B, 3, H, W) in [0, 1], prompts) -> (B,)`."""
CostUnit = Literal["steps", "evaluations", "seconds"]


@dataclass(frozen=True)
class AttemptPlan:
    """What is generated of every prompt and seed.

    Args:
        student_steps: Numbers of steps of the student.
        teacher_steps: Numbers of steps of the teacher.
        drafts: Drafts of each number of steps.
        tries: Tries of the teacher of each number of steps; the first with the first draft's noise.
        previews: Shares of a run's steps after which the clean prediction is scored; student and teacher alike.
    """

    student_steps: tuple[int, ...]
    teacher_steps: tuple[int, ...]
    drafts: int = 8
    tries: int = 4
    previews: tuple[float, ...] = (0.25, 0.34, 0.4, 0.5, 0.6, 0.67, 0.75)

    def steps_scored(self, steps: int) -> frozenset[int]:
        """Return the steps of a run after which its clean prediction is scored."""
        return frozenset(round(share * steps) for share in self.previews) & frozenset(range(1, steps))


@dataclass(frozen=True)
class OneAttempt(DraftFirstPolicy):
    """One draft, or one try of the teacher, scored on the way and at the end, and never given up.

    Args:
        teacher: Whether it is a try of the teacher.
        noise_index: Which of the teacher's noises (`Policy.teacher_noise`); a draft's is its request's.
        scored: Steps after which the clean prediction is scored.
    """

    teacher: bool
    noise_index: int
    scored: frozenset[int]
    threshold: None = None
    rechecks = True
    margin = math.inf
    # With one try and no draft an image would not be scored.
    max_teacher_tries = 2
    scores_previews = True

    def actions(self, strategy: Decision) -> frozenset[Decision]:
        """Return the one thing it does."""
        return frozenset((Decision.REGENERATE if self.teacher else Decision.ACCEPT,))

    def route(self, context: Context) -> list[Decision | None]:
        """Go to the one that is asked."""
        return [Decision.REGENERATE if self.teacher else None] * len(context.prompts)

    def early_threshold(self, teacher: bool, step: int, attempts: int) -> float | None:
        """Return a threshold that nothing falls short of."""
        return -math.inf if step in self.scored else None

    def teacher_noise(self, tries: int) -> int:
        """Return that noise."""
        return self.noise_index

    def decide(self, scores: Sequence[float], context: Context | None = None) -> list[Decision]:
        """Accept every draft."""
        return [Decision.ACCEPT] * len(scores)


@dataclass(frozen=True)
class _Part:
    """One attempt of every row: scores `(R, S)`, value `(R,)`, and what it cost."""

    scores: np.ndarray
    value: np.ndarray
    evaluations: float
    """Of one step."""
    seconds: float
    """Of one step."""
    score_seconds: float
    """Of scoring one image, decoding included."""


def generate_attempts(
    pipe: AdaptivePipeline, settings: CascadeSettings, prompts: Sequence[str], seeds: Sequence[int], plan: AttemptPlan,
    judge: Judge, folder: Path, unit: CostUnit = "evaluations", judge_name: str = "", console: Console | None = None,
) -> AttemptTable:  # fmt: skip
    """Generate and score every attempt of a plan; what is generated is kept in `folder`, so that a stopped run goes on.

    Args:
        pipe: Student, teacher and oracle.
        settings: Solvers, guidance and size; the numbers of steps are the plan's.
        prompts: R of them; a prompt may stand there several times with other seeds.
        seeds: One each.
        plan: What to generate.
        judge: What an image is worth, apart from the oracle.
        folder: Where scores and values are kept.
        unit: Of costs.
        judge_name: Tells judges apart in the kept files.
        console: For progress; None shows none.

    Returns:
        The table. A score costs what it took here: its seconds, or in evaluations its seconds over those of a student's
        evaluation; in steps it is free, as in the paper.

    Raises:
        CalibrationError: If a prompt can't be generated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    belongs = json.dumps([pipe.fingerprints(), settings.to_dict(), list(prompts), list(seeds), judge_name], sort_keys=True)

    def part(teacher: bool, steps: int, noise_index: int) -> _Part:
        scored = plan.steps_scored(steps)
        tag = hashlib.sha256(f"{belongs} {teacher} {steps} {noise_index} {sorted(scored)}".encode()).hexdigest()[:16]
        file = folder / f"{tag}.npz"
        if not file.exists():
            what = f"{'teacher' if teacher else 'student'}, {steps} steps, {'try' if teacher else 'draft'} {noise_index + 1}"
            made = _generate_part(
                pipe, settings, prompts, seeds, OneAttempt(teacher, noise_index, scored), steps, judge, what, console
            )
            beside = file.with_suffix(".part.npz")
            np.savez(beside, **dataclasses.asdict(made))
            beside.replace(file)
        with np.load(file) as kept:
            fields: dict[str, Any] = {k: kept[k] if kept[k].ndim else float(kept[k]) for k in kept.files}
        return _Part(**fields)

    drafts = {n: [part(False, n, k) for k in range(plan.drafts)] for n in plan.student_steps}
    tries = {n: [part(True, n, k) for k in range(plan.tries)] for n in plan.teacher_steps}
    every = [p for parts in (*drafts.values(), *tries.values()) for p in parts]
    score_cost = float(np.median([p.score_seconds for p in every]))
    if unit == "steps":
        score_cost = 0.0
    elif unit == "evaluations":
        student = [p for parts in drafts.values() for p in parts] or every
        score_cost /= float(np.median([p.seconds / p.evaluations for p in student]))

    def attempts(parts: list[_Part]) -> Attempts:
        costs = {"steps": 1.0, "evaluations": parts[0].evaluations, "seconds": np.median([p.seconds for p in parts])}
        cost = float(costs[unit])
        return Attempts(np.stack([p.scores for p in parts]), np.stack([p.value for p in parts]), cost)

    return AttemptTable(
        {n: attempts(parts) for n, parts in drafts.items()}, {n: attempts(parts) for n, parts in tries.items()}, score_cost
    )


def _generate_part(
    pipe: AdaptivePipeline, settings: CascadeSettings, prompts: Sequence[str], seeds: Sequence[int], policy: OneAttempt,
    steps: int, judge: Judge, what: str, console: Console | None,
) -> _Part:  # fmt: skip
    teacher, count = policy.teacher, len(prompts)
    settings = settings.changed(**{"teacher_steps" if teacher else "student_steps": steps})
    attempt = 0 if teacher else policy.noise_index
    requests = [GenerationRequest(p, s, "", i, attempt) for i, (p, s) in enumerate(zip(prompts, seeds, strict=True))]
    scores, value = np.full((count, steps), math.nan), np.full(count, math.nan)
    evaluations = seconds = score_seconds = scored = 0.0
    waiting: list[Result] = []

    def judged() -> None:
        images = torch.stack([r.image for r in waiting if r.image is not None])
        value[[r.request.index for r in waiting]] = judge(images, [r.request.prompt for r in waiting]).double().numpy()
        waiting.clear()

    results = pipe.stream(requests, settings, policy)
    for r in track(results, what, total=count, console=console, transient=True, disable=console is None):
        if r.image is None:
            raise CalibrationError(f"{r.request.prompt!r} could not be generated: {r.error} Take it out of the list.")
        for preview in r.previews:
            scores[r.request.index, preview.step - 1] = math.nan if preview.score is None else preview.score
        name = "teacher" if teacher else "student"
        evaluations += r.cost.evaluations[name]
        seconds += r.cost.seconds[name]
        scored += r.cost.evaluations.get("oracle", 0)
        score_seconds += r.cost.seconds.get("oracle", 0.0) + r.cost.seconds.get("decode", 0.0)
        waiting.append(r)
        if len(waiting) == 64:
            judged()
    if waiting:
        judged()
    return _Part(scores, value, evaluations / count / steps, seconds / count / steps, score_seconds / max(scored, 1.0))
