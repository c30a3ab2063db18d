"""Settings and threshold tuned together for one budget, by successive halving on nested sets of held-out prompts.

The paper chooses sigma, k, student steps and teacher steps by hand for each budget (arXiv 2312.10835, tables 3 to 5). Here
every candidate is tried on a few prompts, the better part goes on to more, and so on; k follows from the budget by
`S + (k / 100) R`. Candidates see the same prompts and seeds, so what a prompt is worth drops out of the comparison, and
what candidates share (the drafts of one number of student steps, the repaintings of one teacher) is painted once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from allaprima.cascade.settings import CascadeSettings, Strategy
from allaprima.core.errors import SettingError
from allaprima.diffusion.noising import Sigma, Variance

SIZES = (32, 96, 288)
"""Prompts of each round, all counted."""
KEEP = 1 / 3


@dataclass(frozen=True)
class Candidate:
    """What is tuned beside the threshold."""

    student_steps: int
    strategy: Strategy
    teacher_steps: int
    teacher_solver: str
    sigma: Sigma | None = None
    """Rollback depth; None when regenerating."""

    def applied(self, base: CascadeSettings) -> CascadeSettings:
        """The settings of a run with it."""
        changes: dict[str, Any] = {} if self.sigma is None else {"sigma": self.sigma}
        return base.changed(
            student_steps=self.student_steps, strategy=self.strategy, teacher_steps=self.teacher_steps,
            teacher_solver=self.teacher_solver, **changes,
        )  # fmt: skip

    def __str__(self) -> str:
        depth = "" if self.sigma is None else f", {type(self.sigma).__name__.lower()} {self.sigma.value:g}"
        return f"{self.student_steps} student steps, {self.strategy} {self.teacher_steps} ({self.teacher_solver}{depth})"


@dataclass(frozen=True)
class EvaluatedPair:
    """What is known of the same pictures, `(N,)` each."""

    draft_scores: np.ndarray
    """What the threshold is compared with."""
    draft_quality: np.ndarray
    """What is to be made large."""
    made_quality: np.ndarray
    """The same of what the teacher made."""

    def joined(self, more: EvaluatedPair) -> EvaluatedPair:
        """These and further ones."""
        pairs = zip(self.columns, more.columns, strict=True)
        return EvaluatedPair(*(np.concatenate(p) for p in pairs))

    @property
    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The three of them."""
        return self.draft_scores, self.draft_quality, self.made_quality


Evaluate = Callable[[Candidate, int, int], EvaluatedPair]
"""A candidate on prompts `low` to `high` (not included)."""


@dataclass(frozen=True)
class Trial:
    """A candidate at the budget, on so many prompts."""

    candidate: Candidate
    prompts: int
    share: float
    """Of drafts escalated."""
    mean_steps: float
    quality: float
    """Mean of what the user would get."""
    error: float
    """Standard error of the difference from the round's best; 0 for the best itself."""


def candidates(
    base: CascadeSettings, budget: float, student_steps: Sequence[int], regenerate_steps: Sequence[int],
    refine_steps: Sequence[int], sigmas: Sequence[float], solvers: Sequence[str],
) -> list[Candidate]:  # fmt: skip
    """Every combination whose drafts alone keep the budget; the base's own is always among them if it does.

    Raises `SettingError` when none does.
    """
    found = [Candidate(s, "regenerate", n, solver) for s in student_steps for n in regenerate_steps for solver in solvers]
    found += [
        Candidate(s, "refine", n, solver, Variance(v))
        for s in student_steps
        for n in refine_steps
        for v in sigmas
        for solver in solvers
    ]
    own = base.sigma if base.strategy == "refine" else None
    found.append(Candidate(base.student_steps, base.strategy, base.teacher_steps, base.teacher_solver, own))
    fitting = [c for c in dict.fromkeys(found) if c.student_steps < budget]
    if not fitting:
        raise SettingError(
            f"budget={budget!r} mean steps leaves nothing for the teacher: the shortest drafts take"
            f" {min(c.student_steps for c in found)} steps. Raise it."
        )
    return fitting


def escalated(scores: np.ndarray, share: float) -> np.ndarray:
    """Which drafts, those of the lowest scores: `(N,)` bool with `round(share N)` of them true."""
    sent = np.zeros(len(scores), dtype=bool)
    sent[np.argsort(scores, kind="stable")[: round(share * len(scores))]] = True
    return sent


def share_of(c: Candidate, budget: float) -> float:
    """The share escalated that spends the budget, or all when that costs less."""
    return min((budget - c.student_steps) / c.teacher_steps, 1.0)


def search(
    found: Sequence[Candidate], evaluate: Evaluate, budget: float, sizes: Sequence[int] = SIZES, keep: float = KEEP,
    note: Callable[[str], None] | None = None,
) -> list[list[Trial]]:  # fmt: skip
    """One list of trials a round, best first; the last round's first is the answer.

    Raises `SettingError` for sizes that don't grow or a keep outside (0, 1).
    """
    if list(sizes) != sorted(set(sizes)) or not sizes or sizes[0] < 2 or not 0 < keep < 1:
        raise SettingError(
            f"sizes={tuple(sizes)!r}, keep={keep!r}: growing numbers of prompts and a share in (0, 1) are due."
        )
    known: dict[Candidate, EvaluatedPair] = {}
    rounds: list[list[Trial]] = []
    left, low = list(found), 0
    for high in sizes:
        if note is not None:
            note(f"{len(left)} settings on {high} prompts")
        finals: dict[Candidate, np.ndarray] = {}
        for c in left:
            new = evaluate(c, low, high)
            known[c] = known[c].joined(new) if c in known else new
            scores, draft, made = known[c].columns
            finals[c] = np.where(escalated(scores, share_of(c, budget)), made, draft)
        best = max(left, key=lambda c: float(finals[c].mean()))
        trials = [_trial(c, budget, finals[c], finals[best]) for c in left]
        rounds.append(sorted(trials, key=lambda t: -t.quality))
        left = [t.candidate for t in rounds[-1][: max(1, math.ceil(len(left) * keep))]]
        low = high
    return rounds


def _trial(c: Candidate, budget: float, final: np.ndarray, best: np.ndarray) -> Trial:
    n, share = len(final), share_of(c, budget)
    spent = c.student_steps + round(share * n) / n * c.teacher_steps
    return Trial(c, n, share, spent, float(final.mean()), float((final - best).std(ddof=1)) / n**0.5)


def share_for_target(looked: EvaluatedPair, target: float) -> float:
    """The least share of drafts, those of the lowest scores, that must be escalated for a mean quality of `target`.

    Raises `SettingError` with what can be reached when it can't.
    """
    scores, draft, made = looked.columns
    order = np.argsort(scores, kind="stable")
    means = draft.mean() + np.concatenate([[0.0], np.cumsum((made - draft)[order])]) / len(draft)
    enough = np.flatnonzero(means >= target)
    if not len(enough):
        raise SettingError(
            f"target={target!r} is out of reach: these models give {means[0]:.4g} with drafts alone and {means.max():.4g} at"
            f" best ({100 * means.argmax() / len(draft):.0f} % escalated). Lower it, or give the teacher more steps."
        )
    return float(enough[0] / len(draft))
