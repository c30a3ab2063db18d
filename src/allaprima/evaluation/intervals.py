"""Confidence intervals of means over prompts: pictures of one prompt are averaged first, prompts are resampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from allaprima.core.errors import SettingError


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4g} ({self.low:.4g}..{self.high:.4g})"


def by_group(values: Sequence[float], groups: Sequence[int]) -> np.ndarray:
    """Return the mean of each group's values, in the order of the groups' numbers."""
    v, g = np.asarray(values, dtype=np.float64), np.asarray(groups)
    if v.shape != g.shape or not len(v):
        raise SettingError(f"{len(v)} values in {len(g)} groups: one group a value, and at least one value, are due.")
    _, index = np.unique(g, return_inverse=True)
    return np.bincount(index, v) / np.bincount(index)


def mean_interval(
    values: Sequence[float], groups: Sequence[int], level: float = 0.95, rounds: int = 2000, seed: int = 0
) -> Interval:
    """Mean over groups with a percentile bootstrap interval; groups (prompts) are what is resampled."""
    means = by_group(values, groups)
    rng = np.random.default_rng(seed)
    draws = rng.choice(means, (rounds, len(means))).mean(1)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(means.mean()), float(low), float(high))


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of a few repeats (seeds) with Student's t interval; one value alone has no interval (both ends nan)."""
    from scipy import stats

    v = np.asarray(values, dtype=np.float64)
    if len(v) < 2:
        return Interval(float(v.mean()), float("nan"), float("nan"))
    half = float(stats.t.ppf((1 + level) / 2, len(v) - 1)) * float(v.std(ddof=1)) / len(v) ** 0.5
    return Interval(float(v.mean()), float(v.mean()) - half, float(v.mean()) + half)
