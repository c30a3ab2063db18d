"""From an oracle's scores to the probability that people prefer a picture, and how often scores and votes agree.

    P(a preferred) = 1 / (1 + exp(-s (E(a) - E(b))))

One slope and no constant: swapping the pictures must give the other probability. The slope is found by maximum likelihood
with the votes' shares as targets; what is reported comes from folds by prompt, so no pair is predicted by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy.optimize import brentq, isotonic_regression
from scipy.special import expit, xlogy

from allaprima.core.errors import SettingError
from allaprima.evaluation.decision import full_reference_right, no_reference_curve
from allaprima.evaluation.intervals import Interval
from allaprima.evaluation.win_rate import wilson_interval

FOLDS = 5
STEEPEST = 1e6
"""Of gaps in units of their spread: where scores tell every vote, there is no finite best slope."""


def fit_slope(gaps: np.ndarray, shares: np.ndarray) -> float:
    """Maximum likelihood slope, for `gaps (N,)` and shares of votes for the first `(N,)` in [0, 1]. 0 if nothing is told."""
    scale = float(np.sqrt(np.mean(gaps**2)))
    if not scale:
        return 0.0
    g = gaps / scale

    def gradient(s: float) -> float:
        return float(np.sum(g * (shares - expit(s * g))))

    # Concave: the gradient falls with s.
    if gradient(STEEPEST) >= 0:
        return STEEPEST / scale
    if gradient(-STEEPEST) <= 0:
        return -STEEPEST / scale
    return cast(float, brentq(gradient, -STEEPEST, STEEPEST)) / scale


def isotonic(gaps: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rising curve nearest to the votes, without a form: sorted gaps and probabilities; both ways round count."""
    g, y = np.concatenate([gaps, -gaps]), np.concatenate([shares, 1 - shares])
    order = np.argsort(g, kind="stable")
    return g[order], np.asarray(isotonic_regression(y[order]).x)


@dataclass(frozen=True)
class Calibrated:
    """What scores tell about votes."""

    slope: float
    log_loss: float
    """On held-out prompts, per pair; log 2 = .693 is knowing nothing."""
    full_reference: Interval
    """Accuracy of `[E(a) > E(b)]` against majority, ties left out."""
    no_reference: float
    """Accuracy of `[E(a) > tau_k]` at its best k: the first method's picture alone. Chosen on these votes, so a bit high."""
    no_reference_k: float
    always_the_same: float
    """Accuracy of always naming the more often preferred method."""
    pairs: int
    gaps: tuple[float, ...]
    """Sorted, with `fitted`: the isotonic curve, for drawing."""
    fitted: tuple[float, ...]


def calibrate(a: Sequence[float], b: Sequence[float], shares: Sequence[float], prompts: Sequence[str],
              level: float = 0.95) -> Calibrated:  # fmt: skip
    """Scores of both pictures and the share of votes for the first, a pair each. Raises `SettingError`."""
    first, second, y = (np.asarray(x, dtype=np.float64) for x in (a, b, shares))
    if not len(first) or not (len(first) == len(second) == len(y) == len(prompts)):
        raise SettingError(f"{len(first)} and {len(second)} scores for {len(y)} pairs: one each, at least one, are due.")
    gaps = first - second
    clear = y != 0.5
    if not clear.any():
        raise SettingError("no pair has a preference: every majority is a tie. More votes are due.")
    wins = (y[clear] > 0.5).tolist()
    right = full_reference_right(first[clear].tolist(), second[clear].tolist(), wins)
    curve = no_reference_curve(first[clear].tolist(), wins)
    share = float(np.mean(wins))
    x, fitted = isotonic(gaps, y)
    return Calibrated(
        fit_slope(gaps, y), _held_out(gaps, y, prompts), wilson_interval(float(right.sum()), len(right), level),
        float(curve.accuracy[curve.best]), float(curve.percent[curve.best]), max(share, 1 - share), len(wins),
        tuple(map(float, x)), tuple(map(float, fitted)),
    )  # fmt: skip


def _held_out(gaps: np.ndarray, y: np.ndarray, prompts: Sequence[str]) -> float:
    _, group = np.unique(np.asarray(prompts), return_inverse=True)
    fold = group % FOLDS
    p = np.full(len(y), 0.5)
    for k in range(FOLDS):
        inside = fold == k
        if inside.any() and not inside.all():
            p[inside] = expit(fit_slope(gaps[~inside], y[~inside]) * gaps[inside])
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return float(-np.mean(xlogy(y, p) + xlogy(1 - y, 1 - p)))
