"""From held-out scores to a threshold that spends a budget (arXiv 2312.10835, section 3.3).

tau is the k-th percentile of the scores of held-out drafts, k the percentage refined; the mean number of steps is
`S + (k / 100) R`: 5 + 0.5 * 20 = 15.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from allaprima.core.errors import SettingError

Scores = Sequence[float] | np.ndarray
"""`(n,)` oracle scores, higher is better."""


def mean_steps(student_steps: int, teacher_steps: int, share: float) -> float:
    """`S + share * R`, share in [0, 1]."""
    return student_steps + share * teacher_steps


def share_for_budget(budget: float, student_steps: int, teacher_steps: int) -> float:
    """The share of drafts that may go to the teacher. Raises `SettingError` when the budget can't be met or spent."""
    low, high = student_steps, student_steps + teacher_steps
    if not low <= budget <= high:
        raise SettingError(
            f"budget={budget!r} mean steps is out of range: {low} (student only) to {high} (everything refined) can be spent"
            f" with {student_steps} student and {teacher_steps} teacher steps. Change the budget or the steps."
        )
    return (budget - student_steps) / teacher_steps


def threshold_for(scores: Scores, share: float) -> float:
    """The score below which `share` of the drafts fall."""
    values = np.asarray(scores, dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        raise SettingError(f"{len(values)} scores, {np.isfinite(values).sum()} of them numbers: at least 2 are due.")
    # One of the scores itself: interpolating between two that differ in their last bit rounds to the wrong one.
    return float(np.quantile(values, min(max(share, 0.0), 1.0), method="higher"))


def bootstrap_interval(scores: Scores, share: float, level: float = 0.95, rounds: int = 1000) -> tuple[float, float]:
    """Percentile bootstrap interval of the threshold, with a fixed seed."""
    values = np.asarray(scores, dtype=np.float64)
    rng = np.random.default_rng(0)
    draws = np.quantile(rng.choice(values, (rounds, len(values))), share, axis=1)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
