"""How well scores tell whether the student's picture or the teacher's is preferred (arXiv 2312.10835, section 3).

The truth is a vote (of people, or of a judge that decides nothing). Full reference: `[E(S) > E(T)]`, both pictures seen.
No reference: `[E(S) > tau_k]`, the draft alone, at the k-th percentile of the drafts' scores. Pictures whose votes are
tied have no truth: leave them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from allaprima.core.errors import SettingError


def decision_accuracy(scores: Sequence[float], student_wins: Sequence[bool]) -> dict[str, float]:
    """How well `score > tau` tells "the student's picture is preferred", at the best tau.

    Beside it: the share of the larger class (what always saying the same would give), and the area under the curve
    (.5 for scores that know nothing). Raises `SettingError` for lengths that differ, none, or scores that are no numbers.
    """
    s, wins = _checked(scores, student_wins)
    order = np.argsort(s)
    right = np.concatenate([[0], np.cumsum(~wins[order])]) + np.concatenate([np.cumsum(wins[order][::-1])[::-1], [0]])
    # Equal scores fall on one side together: no threshold parts them.
    right[1:-1][s[order][1:] == s[order][:-1]] = -1
    best = int(right.argmax())
    tau = float("-inf") if best == 0 else float(s[order][best - 1])
    return {
        "accuracy": float(right.max() / len(s)),
        "tau": tau,
        "student_preferred": float(wins.mean()),
        "always_the_same": float(max(wins.mean(), 1 - wins.mean())),
        "auc": area_under_curve(s, wins),
    }


def full_reference_right(
    student_scores: Sequence[float], teacher_scores: Sequence[float], student_wins: Sequence[bool]
) -> np.ndarray:
    """Whether `[E(S) > E(T)]` agrees with the vote: `(N,)` bool; its mean is the accuracy. Equal scores say "teacher"."""
    s, wins = _checked(student_scores, student_wins)
    t, _ = _checked(teacher_scores, student_wins)
    return (s > t) == wins


@dataclass(frozen=True)
class DecisionCurve:
    """Accuracy of `[E(S) > tau_k]` for each k: arrays of one length."""

    percent: np.ndarray
    """k, the share not taken for the student's, in percent."""
    threshold: np.ndarray
    """tau_k; minus infinity at k = 0, so that every draft is kept."""
    accuracy: np.ndarray

    @property
    def best(self) -> int:
        """Where the accuracy is largest (the first such k)."""
        return int(self.accuracy.argmax())


def no_reference_curve(
    scores: Sequence[float], student_wins: Sequence[bool], percent: Sequence[float] | None = None
) -> DecisionCurve:
    """`[E(S) > tau_k]` against the vote for every k in `percent`, in [0, 100]; default 0, 1, ..., 100.

    tau_k is the smallest score at or below which k % of the scores lie, so without ties exactly `ceil(k n / 100)` drafts
    are sent on. Raises `SettingError` for k out of range and as `decision_accuracy` does.
    """
    s, wins = _checked(scores, student_wins)
    k = np.arange(101.0) if percent is None else np.asarray(percent, dtype=np.float64)
    if not len(k) or not ((k >= 0) & (k <= 100)).all():
        raise SettingError(f"percent={list(k)!r}: percentiles in [0, 100], at least one, are due.")
    order = np.argsort(s)
    ordered, gone = s[order], np.concatenate([[0], np.cumsum(wins[order])])
    # ceil(k n / 100), but 30 % of 10 is 3 although .3 * 10 may be a bit more.
    rank = np.ceil(k * len(s) / 100 - 1e-9).astype(int)
    tau = np.where(rank == 0, -np.inf, ordered[np.maximum(rank - 1, 0)])
    below = np.searchsorted(ordered, tau, side="right")
    right = (below - gone[below]) + (gone[-1] - gone[below])
    return DecisionCurve(k, tau, right / len(s))


def area_under_curve(scores: np.ndarray, wins: np.ndarray) -> float:
    """Return the share of (win, loss) pairs whose scores are in the right order, ties one half; .5 if there is no pair.

    Args:
        scores: `(N,)`.
        wins: `(N,)` bool.
    """
    a, b = scores[wins], np.sort(scores[~wins])
    if not len(a) or not len(b):
        return 0.5
    below, up_to = np.searchsorted(b, a, side="left"), np.searchsorted(b, a, side="right")
    return float((below + up_to).mean() / (2 * len(b)))


def _checked(scores: Sequence[float], student_wins: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    s, wins = np.asarray(scores, dtype=np.float64), np.asarray(student_wins, dtype=bool)
    if s.ndim != 1 or s.shape != wins.shape or not len(s) or not np.isfinite(s).all():
        raise SettingError(
            f"scores of shape {s.shape}, {int(np.isfinite(s).sum())} of them finite, for votes of shape {wins.shape}:"
            " one finite score a vote, and at least one, are due. Leave out pictures without a score or a vote."
        )
    return s, wins
