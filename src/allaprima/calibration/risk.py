"""Thresholds whose accepted drafts lose little: distribution-free risk control from n held-out judged drafts.

A draft has a score and a loss in [0, bound], e.g. 1 where the judge says the teacher would have been better. Drafts with
`score >= tau` are accepted. Held-out and future drafts must be exchangeable (the same models, settings and prompts).
Three promises, each for the smallest tau that can be promised:

- `expected_risk`: `E[loss * 1(score >= tau)] <= alpha`, the loss taken over *all* drafts (escalated ones lose nothing),
  in expectation over calibrations too. Conformal risk control, arXiv 2208.02814, theorem 1.
- `sure_risk`: the same loss over all drafts, but below alpha in 1 - delta of calibrations. RCPS with the bounds of
  Learn then Test, arXiv 2110.01052; exact binomial for losses of 0 and bound, else Hoeffding-Bentkus.
- `accepted_risk`: `E[loss | score >= tau] <= alpha`, among the *accepted*, in 1 - delta of calibrations. Fixed-sequence
  testing of Learn then Test.

The first two need a loss that cannot grow with tau: dropping drafts only removes losses, so it holds for any score. The
third's mean may go up with tau (a poor oracle): it assumes nothing, and stops at the first threshold it can't vouch for.
Where nothing can be promised tau is infinite: accept nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from allaprima.calibration.threshold import Scores
from allaprima.core.errors import SettingError


@dataclass(frozen=True)
class RiskControl:
    """A threshold and what it promises."""

    threshold: float
    """+inf: nothing can be accepted; -inf: everything can."""
    alpha: float
    delta: float | None
    """None: the promise holds in expectation over calibrations."""
    drafts: int
    accepted: float
    """Share of the held-out drafts at or above the threshold."""
    loss: float
    """Their mean loss on the held-out drafts: over all drafts, or among the accepted (`accepted_risk`)."""


def expected_risk(scores: Scores, losses: Scores, alpha: float, bound: float = 1.0) -> RiskControl:
    """Return the smallest tau with `n / (n + 1) * R(tau) + bound / (n + 1) <= alpha` (arXiv 2208.02814, equation 4)."""
    s, y = _checked(scores, losses, alpha, None, bound)
    taus, sums = _candidates(s, y)
    fine = (sums + bound) / (len(s) + 1) <= alpha + 1e-12
    return _control(_last(taus, fine), s, y, alpha, None)


def sure_risk(scores: Scores, losses: Scores, alpha: float, delta: float = 0.1, bound: float = 1.0) -> RiskControl:
    """Return the smallest tau such that from it up the hypothesis "the loss over all drafts exceeds alpha" is rejected."""
    s, y = _checked(scores, losses, alpha, delta, bound)
    taus, sums = _candidates(s, y)
    p = p_values(sums / bound, np.full(len(taus), len(s)), alpha / bound, _binary(y, bound))
    return _control(_last(taus, p <= delta), s, y, alpha, delta)


def accepted_risk(
    scores: Scores, losses: Scores, alpha: float, delta: float = 0.1, bound: float = 1.0,
    grid: Scores | None = None,
) -> RiskControl:  # fmt: skip
    """Return the smallest tau of `grid` such that at it and all above it "the mean loss among the accepted exceeds alpha" is
    rejected.

    `grid`: thresholds chosen without these drafts, e.g. the scores of others nobody judged; its largest must accept
    enough to be sure of anything, log(delta) / log(1 - alpha / bound) drafts without a loss. Without one, every fourth
    draft's score (in the order given, which must not depend on scores or losses) makes the grid and is not tested on.
    """
    s, y = _checked(scores, losses, alpha, delta, bound)
    if grid is None:
        spare = np.arange(len(s)) % 4 == 0
        taus, (s, y) = np.sort(s[spare])[::-1], (s[~spare], y[~spare])
        # Three tested drafts are accepted for each of the grid's: begin with three times the fewest that can be sure of
        # anything. Fixed by n, alpha and delta alone, as it must be.
        fewest = math.log(delta) / math.log1p(-min(alpha / bound, 1 - 1e-9))
        taus = taus[min(math.ceil(fewest), len(taus)) - 1 :]
    else:
        taus = np.sort(np.asarray(grid, dtype=np.float64))[::-1]
    order = np.argsort(-s, kind="stable")
    count = np.searchsorted(-s[order], -taus, side="right")
    sums = np.concatenate([[0.0], np.cumsum(y[order])])[count]
    p = p_values(sums / bound, count, alpha / bound, _binary(y, bound))
    made = _control(_last(taus, p <= delta), s, y, alpha, delta)
    kept = y[s >= made.threshold]
    return RiskControl(made.threshold, alpha, delta, len(s), made.accepted, float(kept.mean()) if len(kept) else 0.0)


def p_values(sums: np.ndarray, n: np.ndarray, alpha: float, binary: bool) -> np.ndarray:
    """Of "the mean of these n losses in [0, 1] exceeds alpha", by their sum.

    Binomial, `P(Bin(n, alpha) <= sum)`, for losses of 0 and 1 (rejecting at delta is Clopper and Pearson's upper end
    below alpha); else Hoeffding-Bentkus, `min(exp(-n h(mean, alpha)), e P(Bin(n, alpha) <= ceil(sum)))` (arXiv
    2110.01052, proposition 6). 1 where n is 0.
    """
    from scipy import special, stats

    if alpha >= 1:
        return np.zeros(len(sums))
    tail = stats.binom.cdf(np.ceil(sums - 1e-9), n, alpha)
    if not binary:
        mean = np.minimum(sums / np.maximum(n, 1), alpha)
        h = special.xlogy(mean, mean / alpha) + special.xlogy(1 - mean, (1 - mean) / (1 - alpha))
        tail = np.minimum(np.exp(-n * h), math.e * tail)
    return np.where(n > 0, np.minimum(tail, 1.0), 1.0)


def _candidates(s: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds from accepting nothing to accepting all, with the sum of the losses accepted at each.

    Just above a score is the smallest threshold without it; between two scores nothing changes. The first of a tie has
    the tie's sum, the others more at the same threshold, which moves none.
    """
    order = np.argsort(-s, kind="stable")
    return np.append(np.nextafter(s[order], np.inf), -np.inf), np.concatenate([[0.0], np.cumsum(y[order])])


def _last(taus: np.ndarray, fine: np.ndarray) -> float:
    """Return the last threshold before the first that is not fine; taus fall."""
    stop = int(np.argmin(fine)) if not fine.all() else len(fine)
    return float(taus[stop - 1]) if stop else math.inf


def _binary(y: np.ndarray, bound: float) -> bool:
    return bool(np.isin(y, (0.0, bound)).all())


def _control(tau: float, s: np.ndarray, y: np.ndarray, alpha: float, delta: float | None) -> RiskControl:
    kept = s >= tau
    return RiskControl(tau, alpha, delta, len(s), float(kept.mean()), float((y * kept).mean()))


def _checked(
    scores: Scores, losses: Scores, alpha: float, delta: float | None, bound: float
) -> tuple[np.ndarray, np.ndarray]:
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if s.shape != y.shape or s.ndim != 1 or len(s) < 2 or not np.isfinite(s).all():
        raise SettingError(f"scores {s.shape} and losses {y.shape}: one loss a score, two or more, and numbers, are due.")
    if not (0 < alpha <= bound and math.isfinite(bound)):
        raise SettingError(f"alpha={alpha!r} must be above 0 and at most the largest loss, bound={bound!r}.")
    if delta is not None and not 0 < delta < 1:
        raise SettingError(f"delta={delta!r} must be between 0 and 1: the share of calibrations that may break the promise.")
    if not ((y >= 0) & (y <= bound)).all():
        raise SettingError(f"losses from {y.min()!r} to {y.max()!r}: 0..{bound!r} are due. Scale them, or raise bound.")
    return s, y
