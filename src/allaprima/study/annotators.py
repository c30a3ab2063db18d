"""Who judged with care: attention checks, speed, sides, agreement with the others."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binom, binomtest

from allaprima.study.outcomes import by_pair
from allaprima.study.votes import Vote

ERROR_RATE = 0.01
"""Of flagging somebody who is careful, for each reason."""
CAREFUL_GOLD = 0.9
"""Share of attention checks that a careful annotator passes."""
FAST_SECONDS = 2.0
"""Median below which nobody has looked at two pictures and answered every question."""
LEAST = 10
"""Votes before sides and agreement say anything."""


@dataclass(frozen=True)
class Quality:
    """One annotator. `flags`: reasons to doubt the votes; none is good."""

    annotator: int
    votes: int
    gold_right: int
    gold: int
    median_seconds: float
    left_share: float
    """Of main answers that named a side; nan where none did."""
    agreed: int
    compared: int
    """Votes on pairs where the others agreed with each other on a picture."""
    flags: tuple[str, ...]


def qualities(votes: Sequence[Vote], gold: Sequence[Vote], question: str) -> list[Quality]:
    """Of everybody who voted."""
    pairs = by_pair(votes)
    return [_quality(n, votes, gold, pairs, question) for n in sorted({v.annotator for v in [*votes, *gold]})]


def _quality(n: int, votes: Sequence[Vote], gold: Sequence[Vote], pairs: dict[int, list[Vote]], question: str) -> Quality:
    mine, checks = [v for v in votes if v.annotator == n], [v for v in gold if v.annotator == n]
    right = sum(bool(v.right) for v in checks)
    took = statistics.median([v.seconds for v in mine]) if mine else float("nan")
    sided = [v for v in mine if v.answers[question] in ("a", "b")]
    left = sum(v.answers[question] == v.left for v in sided)
    agreed, compared, most = _agreement(n, mine, pairs, question)
    flags: list[str] = []
    if checks and binom.cdf(right, len(checks), CAREFUL_GOLD) < ERROR_RATE:
        flags.append(f"passed {right} of {len(checks)} attention checks")
    if mine and took < FAST_SECONDS:
        flags.append(f"median {took:.1f} s a pair")
    if len(sided) >= LEAST and binomtest(left, len(sided)).pvalue < ERROR_RATE / 10:
        flags.append(f"chose the left picture {left} of {len(sided)} times")
    # Where others see a difference, a careful annotator shares it clearly more often than a coin would.
    if compared >= 2 * LEAST and binomtest(agreed, compared, max(0.5, most), alternative="greater").pvalue > 0.2:
        flags.append(f"agrees with the others on {agreed} of {compared} pairs, no better than chance")
    share = left / len(sided) if sided else float("nan")
    return Quality(n, len(mine), right, len(checks), took, share, agreed, compared, tuple(flags))


def _agreement(n: int, mine: Sequence[Vote], pairs: dict[int, list[Vote]], question: str) -> tuple[int, int, float]:
    """Times of saying what the others, who all agreed, said; of how many; and what chance gives.

    Chance is a guess with this annotator's own shares of answers: who always names one method agrees often, by that alone.
    """
    both: list[tuple[str, str]] = []
    for v in mine:
        others = {o.answers[question] for o in pairs[v.pair] if o.annotator != n}
        if len(others) == 1 and len(pairs[v.pair]) > 2 and v.answers[question] != "tie" and others != {"tie"}:
            both.append((v.answers[question], others.pop()))
    if not both:
        return 0, 0, 0.0
    own, theirs = Counter(a for a, _ in both), Counter(b for _, b in both)
    chance = sum(own[k] * theirs[k] for k in own) / len(both) ** 2
    return sum(a == b for a, b in both), len(both), min(chance, 0.95)
