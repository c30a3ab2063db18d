"""What the votes say: win rates with intervals, strengths, agreement, by question and band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from allaprima.core.errors import SettingError
from allaprima.evaluation.intervals import Interval
from allaprima.evaluation.win_rate import wilson_interval
from allaprima.study.agreement import nominal_alpha
from allaprima.study.outcomes import PairOutcome, by_pair, in_order, outcomes
from allaprima.study.questions import QuestionSet
from allaprima.study.sequential import confidence_sequence
from allaprima.study.votes import Vote

ROUNDS = 400
"""Bootstrap rounds of strengths."""


@dataclass(frozen=True)
class Comparison:
    """Two methods, one question, perhaps one band. Counts are of pairs, after majority."""

    question: str
    methods: tuple[str, str]
    band: int | None
    """None: all pairs."""
    wins: int
    """Of the first method."""
    ties: int
    losses: int
    rate: Interval
    """The first method's share of wins, ties one half, with Wilson's interval."""
    sign_p: float
    """Two-sided sign test of wins against losses; ties are left out."""
    anytime: Interval
    """The interval that holds however often one looked: of pairs in the design's order, up to the first unfinished one."""

    def row(self) -> dict[str, Any]:
        """Flat, for tables."""
        return {
            "question": self.question, "method_a": self.methods[0], "method_b": self.methods[1],
            "band": "all" if self.band is None else str(self.band), "pairs": self.wins + self.ties + self.losses,
            "wins": self.wins, "ties": self.ties, "losses": self.losses,
            "win_rate": self.rate.mean, "low": self.rate.low, "high": self.rate.high, "sign_p": self.sign_p,
            "anytime_low": self.anytime.low, "anytime_high": self.anytime.high,
        }  # fmt: skip


def compare(votes: Sequence[Vote], asked: QuestionSet, level: float, least: int) -> list[Comparison]:
    """Every question and two methods, then by band. `least`: votes that a pair must have."""
    made: list[Comparison] = []
    for question in asked.names:
        found = outcomes(votes, question, least)
        ordered = in_order(found)
        for methods in dict.fromkeys(o.methods for o in found):
            mine = [o for o in found if o.methods == methods]
            for band in (None, *sorted({o.band for o in mine if o.band is not None})):
                inside = [o for o in mine if band in (None, o.band)]
                early = [o.value for o in ordered if o.methods == methods and band in (None, o.band)]
                made.append(_comparison(question, methods, band, inside, early, level))
    return made


def _comparison(
    question: str,
    methods: tuple[str, str],
    band: int | None,
    of: Sequence[PairOutcome],
    ordered: Sequence[float],
    level: float,
) -> Comparison:
    values = [o.value for o in of]
    wins, losses = values.count(1.0), values.count(0.0)
    p = float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    rate = wilson_interval(sum(values), len(values), level)
    sequence = confidence_sequence(ordered, 1 - level)
    return Comparison(question, methods, band, wins, len(values) - wins - losses, losses, rate, p, sequence)


@dataclass(frozen=True)
class Difference:
    """Diversity: how often two seeds of a method's prompt were found different in one respect."""

    question: str
    method: str
    pairs: int
    share: Interval

    def row(self) -> dict[str, Any]:
        """Flat, for tables."""
        return {
            "question": self.question, "method": self.method, "pairs": self.pairs, "different": self.share.mean,
            "low": self.share.low, "high": self.share.high,
        }  # fmt: skip


def differences(votes: Sequence[Vote], asked: QuestionSet, level: float, least: int) -> list[Difference]:
    """Every question and method; "unsure" counts as not different."""
    made: list[Difference] = []
    for question in asked.names:
        found = outcomes(votes, question, least, "unsure")
        for method in dict.fromkeys(o.methods[0] for o in found):
            mine = [o.answer == "different" for o in found if o.methods[0] == method]
            made.append(Difference(question, method, len(mine), wilson_interval(sum(mine), len(mine), level)))
    return made


@dataclass(frozen=True)
class MethodStrength:
    """A method's Bradley-Terry probability of winning against an even mix of all methods' mean strength, in [0, 1]."""

    method: str
    share: Interval


def strengths(votes: Sequence[Vote], question: str, level: float, least: int, seed: int = 0) -> list[MethodStrength]:
    """Bradley-Terry by evalica, ties one half for each; prompts are resampled. Shares sum to 1; strongest first.

    Raises `SettingError` where evalica isn't installed.
    """
    try:
        import evalica
    except ImportError as e:
        raise SettingError("strengths need evalica: pip install 'allaprima[study]'.") from e
    found = outcomes(votes, question, least)
    prompts = {v.pair: v.prompt for v in votes}
    methods = sorted({m for o in found for m in o.methods})
    winner = {1.0: evalica.Winner.X, 0.5: evalica.Winner.Draw, 0.0: evalica.Winner.Y}

    def shares(of: Sequence[PairOutcome]) -> np.ndarray:
        # Half a tie between every two methods: without it, one that never lost would be infinitely strong.
        prior = [(a, b) for i, a in enumerate(methods) for b in methods[i + 1 :]]
        xs, ys = [o.methods[0] for o in of] + [a for a, _ in prior], [o.methods[1] for o in of] + [b for _, b in prior]
        winners = [winner[o.value] for o in of] + [winner[0.5]] * len(prior)
        weights = [1.0] * len(of) + [0.5] * len(prior)
        scores = evalica.bradley_terry(xs, ys, winners, weights=weights, limit=1000).scores
        made = scores.reindex(methods).to_numpy(dtype=np.float64)
        return made / made.sum()

    groups: dict[str, list[PairOutcome]] = {}
    for o in found:
        groups.setdefault(prompts[o.pair], []).append(o)
    each, rng = list(groups.values()), np.random.default_rng(seed)
    draws = np.array([
        shares([o for i in rng.integers(len(each), size=len(each)) for o in each[i]]) for _ in range(ROUNDS)
    ])  # fmt: skip
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    best = shares(found)
    made = [MethodStrength(m, Interval(float(best[i]), float(low[i]), float(high[i]))) for i, m in enumerate(methods)]
    return sorted(made, key=lambda s: -s.share.mean)


def agreement(votes: Sequence[Vote], asked: QuestionSet) -> dict[str, float]:
    """Krippendorff's alpha of each question."""
    pairs = by_pair(votes).values()
    return {q: nominal_alpha([[v.answers[q] for v in of] for of in pairs]) for q in asked.names}
