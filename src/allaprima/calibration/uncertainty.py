"""How well a threshold from n held-out prompts keeps its budget on prompts nobody has seen.

tau is an order statistic, the k-th of n scores. When scores don't tie, the share of all drafts that fall below it is
Beta(k, n + 1 - k) distributed *whatever the scores' distribution* (a uniform order statistic), and the number among m
unseen drafts is beta-binomial. With ties only `P(S < tau) <= Beta <= P(S <= tau)` is left, since `score >= tau` accepts
the whole tie: see `ties_at` and `SteeredThreshold`.

What follows for S = 5, R = 20, budget 15, 500 prompts: the mean's standard deviation is 20 sqrt(.25 / 502) = .446 steps,
2.98 % of 15. So a fixed threshold is within 3 % in 68.6 % of calibrations, on any scores; 95 % takes 1,895 prompts. No
other estimate from 500 drafts helps without assuming the distribution's shape: p (1 - p) / n is its efficiency bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from allaprima.calibration.budget import Prices
from allaprima.calibration.threshold import Scores, threshold_for
from allaprima.core.errors import SettingError


def rank(share: float, n: int) -> int:
    """k, 1..n: `threshold_for(scores, share)` is the k-th smallest of n scores."""
    return math.ceil(min(max(share, 0.0), 1.0) * (n - 1)) + 1


@dataclass(frozen=True)
class Uncertainty:
    """A threshold and its mean cost on unseen prompts, each with the ends of an interval of confidence `level`."""

    threshold: float
    threshold_interval: tuple[float, float]
    cost: float
    """Mean of the realised cost, in the unit of the prices."""
    cost_interval: tuple[float, float]
    level: float


def exact_interval(
    scores: Scores, share: float, prices: Prices, level: float = 0.95, pictures: int | None = None
) -> Uncertainty:
    """Exact for scores without ties: order statistics bound the quantile, the Beta law (with `pictures`, the
    beta-binomial law of the mean of that many unseen pictures) the cost.

    The threshold's interval covers the quantile with probability `level` or more; an end beyond the scores is infinite.
    """
    from scipy import stats

    values, n = np.sort(np.asarray(scores, dtype=np.float64)), len(scores)
    tail = (1 - level) / 2
    # P(X_(l) <= q <= X_(u)) = P(l <= Bin(n, share) < u)
    low, high = (int(stats.binom.ppf(p, n, share)) for p in (tail, 1 - tail))
    around = np.concatenate([[-np.inf], values, [np.inf]])
    k = rank(share, n)
    law = stats.beta(k, n + 1 - k) if pictures is None else stats.betabinom(pictures, k, n + 1 - k)
    ends = law.ppf([tail, 1 - tail]) / (pictures or 1)
    return Uncertainty(
        threshold_for(values, share), (float(around[low]), float(around[high + 1])), prices.mean(k / (n + 1)),
        (prices.mean(float(ends[0])), prices.mean(float(ends[1]))), level,
    )  # fmt: skip


def bootstrap(
    scores: Scores, share: float, prices: Prices, level: float = 0.95,
    pictures: int | None = None, rounds: int = 2000, seed: int = 0,
) -> Uncertainty:  # fmt: skip
    """Percentile bootstrap of the threshold and of its cost on unseen prompts; holds with ties too.

    `pictures` adds the noise of a mean over that many unseen pictures; without it, the mean is the long run's.
    """
    taus, shares = _resampled(scores, share, len(scores), rounds, np.random.default_rng(seed), pictures)
    costs = prices.mean(1.0) * shares + prices.mean(0.0) * (1 - shares)
    return Uncertainty(
        threshold_for(scores, share), _ends(taus, level), float(costs.mean()), _ends(costs, level), level
    )  # fmt: skip


def _resampled(
    scores: Scores, share: float, n: int, rounds: int, rng: np.random.Generator, pictures: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds of `rounds` resamples of n scores, and the share of the original ones below each.

    The k-th smallest of n draws from N sorted scores is the one at floor(N Beta(k, n + 1 - k)): nothing need be sorted.
    """
    values = np.sort(np.asarray(scores, dtype=np.float64))
    k = rank(share, n)
    places = (len(values) * rng.beta(k, n + 1 - k, rounds)).astype(np.int64)
    taus = values[np.minimum(places, len(values) - 1)]
    shares = np.searchsorted(values, taus, side="left") / len(values)
    if pictures is not None:
        shares = rng.binomial(pictures, shares) / pictures
    return taus, shares


def _ends(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def chance_within(n: int, share: float, prices: Prices, tolerance: float, pictures: int | None = None) -> float:
    """Probability that the realised mean cost is within `tolerance`, relative, of the budget; scores without ties."""
    from scipy import special, stats

    half = tolerance * prices.mean(share) / prices.escalation
    k = rank(share, n)
    if pictures is None:
        return float(np.diff(stats.beta.cdf([share - half, share + half], k, n + 1 - k))[0])
    low, high = math.ceil(pictures * (share - half) - 1e-9), math.floor(pictures * (share + half) + 1e-9)
    sent = np.arange(max(low, 0), min(high, pictures) + 1)
    ways = -special.betaln(1 + pictures - sent, 1 + sent) - math.log(pictures + 1)
    return float(np.exp(ways + special.betaln(sent + k, pictures - sent + n + 1 - k) - special.betaln(k, n + 1 - k)).sum())


MOST = 1_000_000
"""More held-out prompts than anybody paints."""


def prompts_needed(
    share: float, prices: Prices, tolerance: float = 0.03, confidence: float = 0.95, pictures: int | None = None
) -> int:
    """How many held-out prompts keep the mean cost within `tolerance`, relative, of the budget with that confidence.

    Exact for scores without ties, whatever their distribution. `pictures`: the mean over that many unseen pictures
    instead of the long run's; `SettingError` when their own noise is too much for any number of prompts.
    """
    if not (0 <= share <= 1 and tolerance > 0 and 0 < confidence < 1):
        raise SettingError(f"share={share!r}, tolerance={tolerance!r}, confidence={confidence!r}: 0..1, above 0, 0..1.")

    def falls_short(n: int) -> bool:
        return chance_within(n, share, prices, tolerance, pictures) < confidence

    short, enough = 1, 2
    while falls_short(enough):
        short, enough = enough, 2 * enough
        if enough > MOST:
            by = "prompts" if pictures is None else f"prompts for a mean over {pictures} pictures"
            raise SettingError(
                f"a mean cost within {tolerance:.3g} of the budget in {confidence:.3g} of calibrations takes more than"
                f" {MOST} {by}. Allow a wider tolerance, paint more pictures, or steer the threshold (SteeredThreshold)."
            )
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (middle, enough) if falls_short(middle) else (short, middle)
    # k is a whole number, so the chance goes up with n in a sawtooth some 1 / share long: the last failure counts.
    teeth = min(max(64, math.ceil(3 / max(min(share, 1 - share), 1e-3))), 1000)
    return next((n + 1 for n in range(enough + teeth, enough, -1) if falls_short(n)), enough)


def ties_at(scores: Scores, share: float) -> tuple[float, float]:
    """Shares of the scores below the threshold and below or at it: what a fixed threshold spends, and could spend."""
    values = np.asarray(scores, dtype=np.float64)
    tau = threshold_for(values, share)
    return float((values < tau).mean()), float((values <= tau).mean())


def warning_for(
    scores: Scores, share: float, prices: Prices, tolerance: float = 0.03, confidence: float = 0.95
) -> str | None:
    """Why a fixed threshold from these scores may miss the budget by more than `tolerance`, or None."""
    below, through = ties_at(scores, share)
    budget = prices.mean(share)
    if prices.mean(below) < budget * (1 - tolerance):
        return (
            f"{through - below:.0%} of the scores equal the threshold and are accepted with it: {prices.mean(below):.4g}"
            f" {prices.unit} a picture of the {budget:.4g} asked for. Steer the threshold to spend the rest."
        )
    n = len(scores)
    chance = chance_within(n, share, prices, tolerance)
    if chance >= confidence:
        return None
    low, high = exact_interval(scores, share, prices, confidence).cost_interval
    try:
        need = f"{prompts_needed(share, prices, tolerance, confidence)} prompts"
    except SettingError:
        need = f"more than {MOST} prompts"
    return (
        f"{n} prompts are few: the mean cost will be {low:.4g}..{high:.4g} {prices.unit} ({confidence:.0%}), within"
        f" {tolerance:.2g} of {budget:.4g} with probability {chance:.2f}. {need} reach {confidence:.0%}; so does steering"
        " the threshold as pictures are painted."
    )


@dataclass(frozen=True)
class ConvergenceRow:
    """What n held-out prompts buy. `extrapolated`: more prompts than scores, so the cost is the Beta law's, and the
    threshold's columns, which would have to be invented, are None."""

    prompts: int
    extrapolated: bool
    threshold: float | None
    threshold_sd: float | None
    threshold_interval: tuple[float, float] | None
    cost: float
    cost_interval: tuple[float, float]
    seconds: float
    """To paint and score the drafts."""


SIZES = (50, 100, 200, 300, 500, 1000, 2000, 5000, 10_000, 25_000)


def convergence_table(
    scores: Scores, share: float, prices: Prices, seconds_per_draft: float, sizes: Sequence[int] = SIZES,
    level: float = 0.95, rounds: int = 2000, seed: int = 0,
) -> list[ConvergenceRow]:  # fmt: skip
    """The paper's table of tau against the number of prompts (500: tau = .569 +- .010), with cost and seconds.

    Up to as many prompts as there are scores by the bootstrap (n drawn with replacement), beyond by the Beta law.
    """
    from scipy import stats

    rng = np.random.default_rng(seed)
    rows: list[ConvergenceRow] = []
    for n in sizes:
        seconds = n * seconds_per_draft
        if n > len(scores):
            k = rank(share, n)
            ends = stats.beta.ppf([(1 - level) / 2, (1 + level) / 2], k, n + 1 - k)
            interval = (prices.mean(float(ends[0])), prices.mean(float(ends[1])))
            rows.append(ConvergenceRow(n, True, None, None, None, prices.mean(k / (n + 1)), interval, seconds))
            continue
        taus, shares = _resampled(scores, share, n, rounds, rng)
        costs = prices.draft + shares * prices.escalation
        tau, cost = float(taus.mean()), float(costs.mean())
        rows.append(ConvergenceRow(n, False, tau, float(taus.std()), _ends(taus, level), cost, _ends(costs, level), seconds))
    return rows
