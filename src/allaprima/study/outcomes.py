"""From votes to what a pair's people said together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from allaprima.study.sequential import is_decided
from allaprima.study.votes import Vote

VALUE = {"a": 1.0, "tie": 0.5, "b": 0.0}
"""An outcome as a number: the share of a win that is the first method's."""


@dataclass(frozen=True)
class PairOutcome:
    """One pair and question."""

    pair: int
    methods: tuple[str, str]
    band: int | None
    answer: str
    """What more than half of the votes said; "tie" (or "unsure") where nothing did."""
    votes: int

    @property
    def value(self) -> float:
        """Of the first method: 1, .5 or 0."""
        return VALUE[self.answer]


def by_pair(votes: Iterable[Vote]) -> dict[int, list[Vote]]:
    """In the order of pairs."""
    made: dict[int, list[Vote]] = {}
    for v in sorted(votes, key=lambda v: v.pair):
        made.setdefault(v.pair, []).append(v)
    return made


def majority(answers: Sequence[str], otherwise: str) -> str:
    """What more than half said, else `otherwise`: two against one, but not one of each."""
    answer, count = Counter(answers).most_common(1)[0]
    return answer if 2 * count > len(answers) else otherwise


def outcomes(votes: Iterable[Vote], question: str, least: int = 1, otherwise: str = "tie") -> list[PairOutcome]:
    """Of all pairs with at least `least` votes, in the order of the design."""
    return [
        PairOutcome(pair, of[0].methods, of[0].band, majority([v.answers[question] for v in of], otherwise), len(of))
        for pair, of in by_pair(votes).items()
        if len(of) >= least
    ]


def in_order(found: Sequence[PairOutcome], first: int = 1) -> list[PairOutcome]:
    """The longest beginning of the design without a gap.

    A pair that people hesitate over ends late; stopping by whichever pairs end first would see too few of those.
    """
    by_number = {o.pair: o for o in found}
    made: list[PairOutcome] = []
    while (o := by_number.get(first + len(made))) is not None:
        made.append(o)
    return made


def all_decided(votes: Iterable[Vote], question: str, least: int, alpha: float, comparisons: int) -> bool:
    """Whether every two methods' preference is known; alpha is shared among them (Bonferroni)."""
    groups: dict[tuple[str, str], list[float]] = {}
    for o in in_order(outcomes(votes, question, least)):
        groups.setdefault(o.methods, []).append(o.value)
    return len(groups) == comparisons and all(is_decided(v, alpha / comparisons) for v in groups.values())
