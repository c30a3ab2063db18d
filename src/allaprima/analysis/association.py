"""How two measures of the same pairs go together: Spearman's rank correlation with a bootstrap interval over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from allaprima.core.errors import SettingError
from allaprima.evaluation.intervals import Interval


@dataclass(frozen=True)
class Association:
    """`rho`: Spearman's, with the interval; `pearson` beside it. Both in [-1, 1]."""

    rho: Interval
    pearson: float
    pairs: int
    groups: int

    def row(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "spearman": self.rho.mean, "low": self.rho.low, "high": self.rho.high, "pearson": self.pearson,
            "pairs": self.pairs, "prompts": self.groups,
        }  # fmt: skip


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Product-moment correlation; nan where one of them is constant."""
    a, b = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else float("nan")


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's of the ranks, equal values sharing their mean rank; nan where one of them is constant."""
    from scipy.stats import rankdata

    return pearson(np.asarray(rankdata(x), dtype=np.float64), np.asarray(rankdata(y), dtype=np.float64))


def association(
    x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, groups: Sequence[int] | np.ndarray,
    level: float = 0.95, rounds: int = 1000, seed: int = 0,
) -> Association:  # fmt: skip
    """`x, y: (N,)`; `groups: (N,)` says which pairs share a prompt: prompts are resampled with all their pairs.

    A percentile interval. Raises `SettingError` for other lengths, under 3 prompts, values that are no numbers, or a
    measure that is the same for all.
    """
    a, b, g = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64), np.asarray(groups)
    if a.ndim != 1 or a.shape != b.shape or a.shape != g.shape:
        raise SettingError(f"{a.shape} and {b.shape} values in {g.shape} groups: as many of each are due.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise SettingError("values that are not finite have no rank: leave those pairs out.")
    names, index = np.unique(g, return_inverse=True)
    if len(names) < 3:
        raise SettingError(f"{len(names)} prompts: 3 or more are due for a correlation over prompts.")
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        raise SettingError("one of the two measures is the same for every pair: nothing can go together with it.")
    members = [np.flatnonzero(index == i) for i in range(len(names))]
    rng = np.random.default_rng(seed)
    draws: list[float] = []
    for _ in range(rounds):
        chosen = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        draws.append(spearman(a[chosen], b[chosen]))
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Association(Interval(spearman(a, b), float(low), float(high)), pearson(a, b), len(a), len(names))


def difference_of(
    values: Sequence[float] | np.ndarray, inside: Sequence[bool] | np.ndarray, groups: Sequence[int] | np.ndarray,
    level: float = 0.95, rounds: int = 1000, seed: int = 0,
) -> Interval:  # fmt: skip
    """Mean of the values inside minus mean of those outside, prompts resampled; nan where one side is empty."""
    v, inner, g = np.asarray(values, dtype=np.float64), np.asarray(inside, dtype=bool), np.asarray(groups)
    if v.shape != inner.shape or v.shape != g.shape or not len(v):
        raise SettingError(f"{v.shape} values, {inner.shape} sides, {g.shape} groups: as many of each are due.")
    if inner.all() or not inner.any():
        return Interval(float("nan"), float("nan"), float("nan"))
    names, index = np.unique(g, return_inverse=True)
    sums = np.stack([np.bincount(index, w, len(names)) for w in (v * inner, inner, v * ~inner, ~inner)])
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=rounds)
    with np.errstate(invalid="ignore", divide="ignore"):
        a, n, b, m = sums @ weights.T
        draws = a / n - b / m
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(v[inner].mean() - v[~inner].mean()), float(low), float(high))
