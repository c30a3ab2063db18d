"""Find out what pays: the best sequential policy at each budget beside every control at the same cost.

Policies are chosen on one half of the prompts and measured on the other, over several splits. Whoever chooses doesn't judge:
values come from a judge apart from the oracle that the policies go by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from allaprima.calibration.sequential import (
    AttemptTable,
    PolicyFamily,
    SequentialCandidate,
    best_mixture,
    random_escalation,
    search_policy,
    simulate,
    split_by_prompt,
)
from allaprima.evaluation.intervals import Interval, mean_interval


@dataclass(frozen=True)
class MethodResult:
    """What a method gives at a budget, measured on prompts that it was not chosen on.

    The steps of student alone and teacher alone are chosen on all prompts, which favours these controls.

    Args:
        name: Of the method.
        budget: Mean cost that was allowed.
        cost: Mean cost that it took.
        value: Mean value with its 95 % interval, prompts resampled.
        behind: By how much the cascade's value is above this one, paired by row, with its 95 % interval.
        policy: What was chosen on the first split, in words; empty for controls without a choice.
    """

    name: str
    budget: float
    cost: float
    value: Interval
    behind: Interval
    policy: str = ""


@dataclass(frozen=True)
class _Measured:
    """Mean value of each row over the splits it was measured in, nan where in none, with what was chosen."""

    rows: np.ndarray
    cost: float
    chosen: tuple[SequentialCandidate, ...]


def families(drafts: int, tries: int) -> dict[str, PolicyFamily]:
    """Return the cascade, its parts and the controls that look at scores, by name; the first is the cascade."""
    made = (
        PolicyFamily("cascade", drafts, tries, early=True),
        PolicyFamily("cascade without early stops", drafts, tries),
        PolicyFamily("one draft, one try", 1, 1),
        PolicyFamily("student retried", drafts, 0, early=True),
        PolicyFamily("student retried without early stops", drafts, 0),
        PolicyFamily("student, best of n", drafts, 0, stops=False),
        PolicyFamily("teacher retried", 0, tries, early=True),
        PolicyFamily("teacher retried without early stops", 0, tries),
        PolicyFamily("teacher, best of n", 0, tries, stops=False),
    )
    return {family.name: family for family in made}


def compare_methods(
    table: AttemptTable, prompts: Sequence[str], budgets: Sequence[float], splits: int = 5, drawn: int = 800,
    moves: int = 300, note: Callable[[str], None] | None = None,
) -> list[MethodResult]:  # fmt: skip
    """Measure every method at every budget.

    Args:
        table: Attempts of R rows.
        prompts: Of the rows; rows of one prompt stay together in splits and in intervals.
        budgets: Mean costs a row, in the table's unit.
        splits: How many; in each a half chooses and the other measures, and the other way round.
        drawn: Random policies a search.
        moves: Neighbours tried a search.
        note: Called with what is done.

    Returns:
        A result a method and budget; methods that can't keep a budget have none there.
    """
    found: list[MethodResult] = []
    drafts = min(len(a.scores) for a in table.drafts.values())
    # The first of the table's tries has the draft's noise; a policy may want as many fresh ones as tries.
    tries = min(len(a.scores) for a in table.teacher.values()) - 1
    halves = [split_by_prompt(prompts, k) for k in range(splits)]
    pairs = [pair for a, b in halves for pair in ((a, b), (b, a))]
    for budget in budgets:
        measured: dict[str, _Measured] = {}
        for name, family in families(drafts, tries).items():
            if note is not None:
                note(f"budget {budget:g}: {name}")
            rows = _chosen_elsewhere(family, table, pairs, budget, drawn, moves)
            if rows is not None:
                measured[name] = rows
        perfect = _chosen_elsewhere(
            PolicyFamily("perfect oracle", drafts, tries), table.judged_by_value(), pairs, budget, drawn, moves
        )
        if perfect is not None:
            measured["perfect oracle"] = perfect
        if "one draft, one try" in measured:
            measured["one draft, one try, sent by chance"] = _by_chance(measured["one draft, one try"], table, pairs)
        measured |= _alone(table, budget)
        base = measured.get("cascade")
        for name, m in measured.items():
            behind = _interval((m if base is None else base).rows - m.rows, prompts)
            said = describe(m.chosen[0]) if m.chosen else ""
            found.append(MethodResult(name, budget, m.cost, _interval(m.rows, prompts), behind, said))
    return found


def _chosen_elsewhere(
    family: PolicyFamily, table: AttemptTable, pairs: Sequence[tuple[np.ndarray, np.ndarray]], budget: float, drawn: int,
    moves: int,
) -> _Measured | None:  # fmt: skip
    """Choose on the first of each pair and measure on the second; None where the budget can't be kept."""
    total, count = np.zeros(len(table)), np.zeros(len(table))
    costs: list[float] = []
    chosen: list[SequentialCandidate] = []
    for k, (mine, others) in enumerate(pairs):
        best = search_policy(family, table.rows(mine), budget, seed=k, drawn=drawn, moves=moves)
        if best is None:
            return None
        outcome = simulate(best[0], table.rows(others))
        total[others] += outcome.value
        count[others] += 1
        costs.append(outcome.mean_cost)
        chosen.append(best[0])
    return _Measured(total / count, float(np.mean(costs)), tuple(chosen))


def _by_chance(policy: _Measured, table: AttemptTable, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> _Measured:
    """As many rows as by the policies, but drawn by chance, go to the teacher; each row's expectation."""
    total, count = np.zeros(len(table)), np.zeros(len(table))
    for candidate, (_, others) in zip(policy.chosen, pairs, strict=True):
        total[others] += random_escalation(candidate, table.rows(others))
        count[others] += 1
    return _Measured(total / count, policy.cost, ())


def _alone(table: AttemptTable, budget: float) -> dict[str, _Measured]:
    """Student alone and teacher alone: their steps at that cost, two numbers of steps mixed by chance between."""
    made: dict[str, _Measured] = {}
    for name, attempts in (("student alone", table.drafts), ("teacher alone", table.teacher)):
        costs = [a.steps * a.step_cost for a in attempts.values()]
        rows = [a.value[0] for a in attempts.values()]
        shares = best_mixture(costs, [float(r.mean()) for r in rows], budget)
        if shares is not None:
            cost = sum(w * c for w, c in zip(shares, costs, strict=True))
            made[name] = _Measured(np.average(np.stack(rows), axis=0, weights=shares), float(cost), ())
    return made


def _interval(values: np.ndarray, prompts: Sequence[str]) -> Interval:
    """Return the mean with its 95 % interval; prompts are resampled with all their rows."""
    _, groups = np.unique(list(prompts), return_inverse=True)
    return mean_interval(values.tolist(), groups.tolist())


def describe(candidate: SequentialCandidate) -> str:
    """Return a policy in words."""
    p = candidate.policy
    words: list[str] = []
    if p.max_drafts:
        words.append(f"{p.max_drafts} x student {candidate.drafts} until {p.threshold:.2f}")
        words += [f"stopped after {s.step} below {s.threshold:.2f}" for s in p.draft_stops]
    if p.max_teacher_tries:
        again = f" until {p.teacher_threshold:.2f}" if p.max_teacher_tries > 1 else ""
        words.append(f"{p.max_teacher_tries} x teacher {candidate.teacher}{again}, {p.noise} noise")
        words += [f"stopped after {s.step} below {s.threshold:.2f}" for s in p.teacher_stops]
    return "; ".join(words)
