"""Pairwise win rate of A over B from scores of the same prompts and seeds; a tie is half a win for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from allaprima.core.errors import SettingError
from allaprima.evaluation.intervals import Interval, mean_interval


@dataclass(frozen=True)
class WinRate:
    """Shares are in [0, 1]; counts are of pictures."""

    wins: int
    ties: int
    losses: int
    bootstrap: Interval
    """Mean over prompts of A's win rate; prompts resampled."""
    wilson: Interval | None
    """Wilson's score interval, which holds for independent prompts: `None` if a prompt has several pairs."""


def win_rate(
    a: Sequence[float],
    b: Sequence[float],
    prompts: Sequence[int] | None = None,
    higher_is_better: bool = True,
    level: float = 0.95,
    rounds: int = 2000,
    seed: int = 0,
) -> WinRate:
    """Return a over B, `a[i]` and `b[i]` a pair of prompt number `prompts[i]` (by default each has a prompt of its own).

    Raises `SettingError` for scores of different numbers, none at all, or not finite.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or not len(x):
        raise SettingError(f"{len(x)} scores of A and {len(y)} of B: as many of each, one at least, are due.")
    if not 0 < level < 1:
        raise SettingError(f"level={level}: a share between 0 and 1 is due, for example 0.95.")
    for name, v in (("A", x), ("B", y)):
        bad = np.flatnonzero(~np.isfinite(v))
        if len(bad):
            raise SettingError(f"score {bad[0]} of {name} is {v[bad[0]]}: finite numbers are due. Leave that pair out.")
    groups = list(range(len(x))) if prompts is None else list(prompts)
    sign = np.sign(x - y) * (1 if higher_is_better else -1)
    won = (sign + 1) / 2
    boot = mean_interval(won.tolist(), groups, level, rounds, seed)
    alone = len(set(groups)) == len(groups)
    wilson = wilson_interval(float(won.sum()), len(won), level) if alone else None
    return WinRate(int((sign > 0).sum()), int((sign == 0).sum()), int((sign < 0).sum()), boot, wilson)


def wilson_interval(wins: float, count: int, level: float = 0.95) -> Interval:
    """Wilson's score interval (1927) of a share; `wins` may hold halves, which makes it wider than need be."""
    if count < 1 or not 0 <= wins <= count:
        raise SettingError(f"{wins} wins of {count}: between 0 and a positive count is due.")
    z = NormalDist().inv_cdf((1 + level) / 2)
    p = wins / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (p * (1 - p) / count + z * z / (4 * count * count)) ** 0.5
    return Interval(p, max(centre - half, 0.0), min(centre + half, 1.0))
