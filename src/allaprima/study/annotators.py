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
"""Votes before sides say anything; twice as many before agreement does."""
LUCK = 0.35
"""Who agrees with nobody better than luck would this often is doubted; careful ones (80 % right) are so in about 1 %."""
TELLING = 0.9
"""Chance agreement above which nearly all answers are the same one."""


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
    """Pairs that both this annotator and the other who agrees best named a picture of."""
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
    agreed, compared, luck = _agreement(n, mine, pairs, question)
    flags: list[str] = []
    if checks and binom.cdf(right, len(checks), CAREFUL_GOLD) < ERROR_RATE:
        flags.append(f"passed {right} of {len(checks)} attention checks")
    if mine and took < FAST_SECONDS:
        flags.append(f"median {took:.1f} s a pair")
    if len(sided) >= LEAST and binomtest(left, len(sided)).pvalue < ERROR_RATE / 10:
        flags.append(f"chose the left picture {left} of {len(sided)} times")
    if compared and luck > LUCK:
        flags.append(f"agrees with nobody: at best on {agreed} of {compared} pairs, no better than luck")
    share = left / len(sided) if sided else float("nan")
    return Quality(n, len(mine), right, len(checks), took, share, agreed, compared, tuple(flags))


def _agreement(n: int, mine: Sequence[Vote], pairs: dict[int, list[Vote]], question: str) -> tuple[int, int, float]:
    """With the one other annotator who agrees best: times of saying the same, of how many, and the chance of that by luck.

    Against the best other, not all: beside two careless ones, somebody careful would look careless. Ties are left out.
    Luck is a guess with both annotators' own shares: who always names one method agrees often by that alone, and where
    nearly all say the same, agreement tells nothing.
    """
    both: dict[int, list[tuple[str, str]]] = {}
    for v in mine:
        for o in pairs[v.pair]:
            if o.annotator != n and "tie" not in (v.answers[question], o.answers[question]):
                both.setdefault(o.annotator, []).append((v.answers[question], o.answers[question]))
    best = (0, 0, 1.0)
    for of in both.values():
        own, theirs = Counter(a for a, _ in of), Counter(b for _, b in of)
        chance = sum(own[k] * theirs[k] for k in own) / len(of) ** 2
        agreed = sum(a == b for a, b in of)
        if len(of) < 2 * LEAST or chance > TELLING:
            return agreed, len(of), 0.0
        best = min(best, (agreed, len(of), float(binomtest(agreed, len(of), chance, alternative="greater").pvalue)),
                   key=lambda b: b[2])  # fmt: skip
    return best
