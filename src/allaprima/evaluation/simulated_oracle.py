"""What an oracle of a given accuracy would buy, and the bounds (arXiv 2312.10835, appendix, figure 16).

Known of every picture: the quality of the student's draft and of the teacher's picture; gain = teacher - student. A
share k of the drafts goes to the teacher: exactly `m = round(k n)`, so that every row costs the same.

An oracle of accuracy a in [.5, 1] is right about which of the two is better with probability a, independently for each
picture. That alone does not say *which* m pictures it escalates, so it gives each picture a key, whose sign is its
(noisy) preference, and the m largest keys are escalated: those it prefers the teacher's picture for first, as many of
the others as it takes to fill the share last. Two constructions, by what the oracle knows:

- `gain` (default): it knows the picture with probability c = 2a - 1, and then the key is the true gain; else it guesses:
  a fair coin for the sign, the size of a random picture's gain. It is right with probability c + (1 - c) / 2 = a. At
  a = 1 it is the perfect oracle; at a = .5 the keys are independent of the pictures and it is the random choice.
- `sign`: the true sign, flipped with probability 1 - a, and nothing about sizes: among equal preferences the choice is
  random. At a = .5 it is the random choice; at a = 1 it falls short of the perfect oracle, for it can't tell a large
  gain from a small one. This is the plainest reading of the paper, which doesn't say how its share is kept.

Flipping the sign of the true gain (the key `+-gain`) would be wrong at a = .5: pictures with large gains in either
direction would be escalated first, and the choice would not be random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from allaprima.core.errors import SettingError
from allaprima.evaluation.intervals import Interval


@dataclass(frozen=True)
class SimulatedPoint:
    """Mean final quality at an oracle accuracy; the interval is over the oracle's luck, not over prompts."""

    accuracy: float
    quality: Interval


def perfect_oracle(student: Sequence[float], teacher: Sequence[float], share: float, spend_all: bool = True) -> float:
    """Mean quality when the drafts with the largest gains are escalated: the upper bound at this share.

    With `spend_all` exactly `round(share n)` of them, as every other row here; without, at most as many: drafts the
    teacher would not improve are kept, which costs less and is never worse.
    """
    s, gain = _checked(student, teacher)
    chosen = np.sort(gain)[::-1][: _count(share, len(s))]
    return float(s.mean() + (chosen if spend_all else chosen.clip(min=0)).sum() / len(s))


def full_reference(student: Sequence[float], teacher: Sequence[float], distance: Sequence[float], share: float) -> float:
    """Mean quality when the drafts farthest from the teacher's pictures are escalated (`distance: (N,)`, any unit).

    Not a policy, since the distance needs the teacher's picture: it bounds what a guess of the distance could buy. Equal
    distances are taken in the order given.
    """
    s, gain = _checked(student, teacher)
    d = np.asarray(distance, dtype=np.float64)
    if d.shape != s.shape or np.isnan(d).any():
        raise SettingError(f"{d.shape} distances, {int(np.isnan(d).sum())} not numbers, for {s.shape} pictures: one each.")
    return float(s.mean() + gain[np.argsort(-d, kind="stable")[: _count(share, len(s))]].sum() / len(s))


def random_choice(student: Sequence[float], teacher: Sequence[float], share: float, level: float = 0.95) -> Interval:
    """Mean quality when `m = round(share n)` random drafts are escalated, in closed form: no simulation.

    `mean(S) + (m / n) mean(gain)`, with the normal interval of a draw without replacement, whose standard deviation is
    `sqrt(m (1 - m / n)) sd(gain) / n`.
    """
    from statistics import NormalDist

    s, gain = _checked(student, teacher)
    n, m = len(s), _count(share, len(s))
    mean = float(s.mean() + m / n * gain.mean())
    sd = float(gain.std(ddof=1)) * (m * (1 - m / n)) ** 0.5 / n if n > 1 else 0.0
    half = NormalDist().inv_cdf((1 + level) / 2) * sd
    return Interval(mean, mean - half, mean + half)


def oracle_keys(gain: np.ndarray, accuracy: float, knows: str, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """Keys `(rounds, N)` of gains `(N,)`: larger is escalated first, the sign is the oracle's preference."""
    shape = (rounds, len(gain))
    if knows == "gain":
        known = rng.random(shape) < 2 * accuracy - 1
        guess = rng.choice((-1.0, 1.0), shape) * np.abs(gain)[rng.integers(len(gain), size=shape)]
        return np.where(known, gain, guess)
    if knows == "sign":
        return np.where(rng.random(shape) < accuracy, 1.0, -1.0) * np.where(gain > 0, 1.0, -1.0)
    raise SettingError(f"knows={knows!r} is not known: use 'gain' or 'sign'.")


def simulated_oracle(
    student: Sequence[float],
    teacher: Sequence[float],
    share: float,
    accuracies: Sequence[float] = tuple(0.5 + 0.05 * i for i in range(11)),
    knows: str = "gain",
    rounds: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> list[SimulatedPoint]:
    """Mean final quality against the oracle's accuracy: the curve of figure 16.

    Args:
        student: quality of each draft, `(N,)`, higher is better.
        teacher: quality of the teacher's image for it, `(N,)`.
        share: of the drafts escalated, in [0, 1].
        accuracies: each in [.5, 1].
        knows: `gain` or `sign`, see above.
        rounds: repeats.
        level: share of them that the interval holds.
        seed: of the draws.

    Raises `SettingError` for values out of range.
    """
    s, gain = _checked(student, teacher)
    m = _count(share, len(s))
    if rounds < 1:
        raise SettingError(f"rounds={rounds!r}: at least 1 is due.")
    points: list[SimulatedPoint] = []
    for a in accuracies:
        if not 0.5 <= a <= 1 + 1e-9:
            raise SettingError(f"accuracy={a!r} is out of range: .5 (a coin) to 1 (always right).")
        # The same luck at every accuracy: neighbouring points differ by what the oracle knows, not by the draw.
        rng = np.random.default_rng(seed)
        keys = oracle_keys(gain, a, knows, rounds, rng)
        order = np.lexsort((rng.random(keys.shape), -keys))  # equal keys in random order
        quality = s.mean() + gain[order[:, :m]].sum(1) / len(s)
        low, high = np.quantile(quality, [(1 - level) / 2, (1 + level) / 2])
        points.append(SimulatedPoint(float(a), Interval(float(quality.mean()), float(low), float(high))))
    return points


def _count(share: float, n: int) -> int:
    if not 0 <= share <= 1:
        raise SettingError(f"share={share!r} is out of range: the share of drafts escalated lies in [0, 1].")
    return round(share * n)


def _checked(student: Sequence[float], teacher: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Student's quality and the gain."""
    s, t = np.asarray(student, dtype=np.float64), np.asarray(teacher, dtype=np.float64)
    if s.ndim != 1 or s.shape != t.shape or not len(s) or not (np.isfinite(s).all() and np.isfinite(t).all()):
        raise SettingError(
            f"qualities of shapes {s.shape} and {t.shape}: two finite numbers a picture, at least one, are due."
        )
    return s, t - s
