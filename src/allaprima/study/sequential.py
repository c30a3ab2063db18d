"""Looking at votes while they come, without paying for it: a confidence sequence for the mean of values in [0, 1].

For p in (0, 1) let `K_t(p)` be the likelihood ratio of a Beta(1, 1) mixture of coins against the coin p (Robbins 1970;
Howard, Ramdas, McAuliffe, Sekhon 2021, arXiv 1810.08240): with W the sum of the first t values and L = t - W,

    K_t(p) = B(1 + W, 1 + L) / (p^W (1 - p)^L)

If p is the mean, K is a nonnegative martingale that starts at 1 (a supermartingale for values between 0 and 1, ties as
one half: `(q/p)^x ((1-q)/(1-p))^(1-x)` is at most its chord, as in the bets of Waudby-Smith and Ramdas 2024, arXiv
2010.09686). By Ville's inequality it ever reaches 1 / alpha with probability at most alpha. So the set of all p with
`K_t(p) < 1 / alpha` holds the truth at all times t together with probability 1 - alpha, whenever one stops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from scipy.optimize import brentq
from scipy.special import betaln

from allaprima.core.errors import SettingError
from allaprima.evaluation.intervals import Interval


def log_evidence(total: float, count: int, p: float) -> float:
    """`log K_t(p)`: above `log(1 / alpha)`, the mean p is refuted at error rate alpha."""
    won, lost = total, count - total
    against = (won * math.log(p) if won else 0.0) + (lost * math.log1p(-p) if lost else 0.0)
    return float(betaln(1 + won, 1 + lost)) - against


def confidence_sequence(values: Sequence[float], alpha: float) -> Interval:
    """Mean and the interval at this time, of a sequence that holds at all times. Raises `SettingError`."""
    if not 0 < alpha < 1 or any(not 0 <= v <= 1 for v in values):
        raise SettingError(f"alpha={alpha} and values: both in [0, 1] are due, alpha strictly inside.")
    n, total = len(values), float(sum(values))
    if not n:
        return Interval(0.5, 0.0, 1.0)
    mean, bar = total / n, math.log(1 / alpha)

    def over(p: float) -> float:
        return log_evidence(total, n, p) - bar

    # K is smallest at the mean and grows to both sides.
    tiny = 1e-12
    inner = min(max(mean, tiny), 1 - tiny)
    low = 0.0 if over(tiny) <= 0 else cast(float, brentq(over, tiny, inner))
    high = 1.0 if over(1 - tiny) <= 0 else cast(float, brentq(over, inner, 1 - tiny))
    return Interval(mean, low, high)


def is_decided(values: Sequence[float], alpha: float) -> bool:
    """Whether an even chance is refuted now."""
    return bool(values) and log_evidence(float(sum(values)), len(values), 0.5) >= math.log(1 / alpha)
