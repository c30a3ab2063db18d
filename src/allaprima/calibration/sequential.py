"""Sequential policies on a table of attempts: what each would cost and give, and which is best at a budget.

Held-out prompts are painted once: several drafts and several tries of the teacher each, with the oracle's scores of the
clean predictions after every step. A policy is then looked up in the table, without painting again. The best one at a
budget is searched on some prompts; others measure it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from allaprima.cascade.policy import Decision
from allaprima.cascade.sequential import EarlyStop, SequentialPolicy
from allaprima.core.errors import SettingError


@dataclass(frozen=True)
class Attempts:
    """Attempts of one model, in one number of steps, at the same R rows (prompts, several times with other seeds).

    Args:
        scores: `(A, R, S)`: the oracle's score of the clean prediction after each of S steps; the last is the image's.
        value: `(A, R)`: what the image is worth by a judge apart from the oracle, for example 1 for a right one.
        step_cost: Of one step, in evaluations or seconds.
    """

    scores: np.ndarray
    value: np.ndarray
    step_cost: float

    def __post_init__(self) -> None:
        if self.scores.ndim != 3 or self.value.shape != self.scores.shape[:2]:
            raise SettingError(
                f"scores of shape {self.scores.shape} and values of shape {self.value.shape}: expected (A, R, S) and (A, R)."
            )

    @property
    def steps(self) -> int:
        """S."""
        return self.scores.shape[2]

    @cached_property
    def known(self) -> tuple[np.ndarray, ...]:
        """Scores after each step that are numbers, sorted: a search asks for their quantiles again and again."""
        flat = self.scores.reshape(-1, self.steps)
        return tuple(np.sort(column[~np.isnan(column)]) for column in flat.T)

    def quantile(self, step: int, level: float) -> float:
        """Return a quantile of the scores after a step (0 the first, -1 the last), `level` in [0, 1]."""
        known = self.known[step]
        return float(known[min(int(level * len(known)), len(known) - 1)])

    def rows(self, index: np.ndarray) -> Attempts:
        """Return the attempts at some of the rows."""
        return Attempts(self.scores[:, index], self.value[:, index], self.step_cost)

    def judged_by_value(self) -> Attempts:
        """Return the same attempts under an oracle that is never wrong about images and knows nothing before the end."""
        scores = np.full_like(self.scores, math.nan)
        scores[:, :, -1] = self.value
        return Attempts(scores, self.value, self.step_cost)


@dataclass(frozen=True)
class SequentialCandidate:
    """A policy with the steps of student and teacher.

    Args:
        policy: The policy.
        drafts: Key of `AttemptTable.drafts`; None where there are no drafts.
        teacher: Key of `AttemptTable.teacher`; None where the teacher is never asked.
    """

    policy: SequentialPolicy
    drafts: int | None
    teacher: int | None


@dataclass(frozen=True)
class AttemptTable:
    """Everything that policies are looked up in.

    Args:
        drafts: Attempts of the student by its number of steps.
        teacher: Tries of the teacher by its number of steps. The first begins with the noise of the first draft.
        score_cost: Of scoring one image, its decoding included, in the unit of the steps' cost.
    """

    drafts: Mapping[int, Attempts]
    teacher: Mapping[int, Attempts]
    score_cost: float

    def __len__(self) -> int:
        return next(iter({**self.drafts, **self.teacher}.values())).value.shape[1]

    def rows(self, index: np.ndarray) -> AttemptTable:
        """Return the table of some of its rows, `(M,)`."""
        return dataclasses.replace(
            self,
            drafts={k: v.rows(index) for k, v in self.drafts.items()},
            teacher={k: v.rows(index) for k, v in self.teacher.items()},
        )

    def judged_by_value(self) -> AttemptTable:
        """Return the same table under a perfect oracle (`Attempts.judged_by_value`)."""
        return dataclasses.replace(
            self,
            drafts={k: v.judged_by_value() for k, v in self.drafts.items()},
            teacher={k: v.judged_by_value() for k, v in self.teacher.items()},
        )


@dataclass(frozen=True)
class SequentialOutcome:
    """What a policy would have given, an entry a row.

    Args:
        value: Of the images given.
        cost: In the table's unit.
        drafts: How many drafts were begun.
        tries: How many tries of the teacher were begun.
    """

    value: np.ndarray
    cost: np.ndarray
    drafts: np.ndarray
    tries: np.ndarray

    @property
    def mean_cost(self) -> float:
        """Mean cost a row."""
        return float(self.cost.mean())

    @property
    def mean_value(self) -> float:
        """Mean value a row."""
        return float(self.value.mean())


class _Best:
    """The best image so far of each row."""

    def __init__(self, rows: int) -> None:
        self.score, self.value = np.full(rows, -math.inf), np.full(rows, math.nan)

    def take(self, rows: np.ndarray, score: np.ndarray, value: np.ndarray) -> None:
        """Take new images where they beat what is there; any image beats none."""
        score = np.where(np.isnan(score), -math.inf, score)
        better = rows & ((score > self.score) | np.isnan(self.value))
        self.score, self.value = np.where(better, score, self.score), np.where(better, value, self.value)


def simulate(candidate: SequentialCandidate, table: AttemptTable) -> SequentialOutcome:
    """Look a policy up, as the cascade would have gone.

    Raises:
        SettingError: If it wants more attempts than the table holds, or refines, which the table doesn't.
    """
    policy, rows = candidate.policy, len(table)
    if policy.max_drafts and policy.max_teacher_tries and policy.action is Decision.REFINE:
        raise SettingError("the table holds drafts and regenerated images, no refined ones: use action='regenerate'.")
    cost, waiting = np.zeros(rows), np.ones(rows, bool)
    begun = {False: np.zeros(rows, int), True: np.zeros(rows, int)}
    draft, final = _Best(rows), _Best(rows)

    def attempt(of: Attempts, teacher: bool, number: int, noise: int, scored: np.ndarray) -> np.ndarray:
        """Run an attempt of the rows that wait; returns which of them come to an end."""
        running = waiting.copy()
        if not running.any():
            return running
        begun[teacher] += running
        for step in range(1, of.steps + 1):
            cost[running] += of.step_cost
            least = policy.early_threshold(teacher, step, number) if step < of.steps else None
            if least is not None:
                cost[running] += table.score_cost
                running &= ~(of.scores[noise, :, step - 1] < least)
        cost[running & scored] += table.score_cost
        return running

    for k in range(policy.max_drafts):
        of = _held(table.drafts, candidate.drafts, k, "drafts")
        ended = attempt(of, False, k, k, np.ones(rows, bool))
        draft.take(ended, of.scores[k, :, -1], of.value[k])
        waiting &= ~(np.isfinite(draft.score) & (draft.score >= policy.threshold))
    if policy.max_teacher_tries:
        shift = policy.teacher_noise(0)
        # A teacher's image is scored where another try may follow, or a draft may be kept instead.
        drawn = ~np.isnan(draft.value)
        scored = policy.rechecks & (drawn | (policy.max_teacher_tries > 1))
        for k in range(policy.max_teacher_tries):
            of = _held(table.teacher, candidate.teacher, k + shift, "tries of the teacher")
            ended = attempt(of, True, k, k + shift, scored)
            final.take(ended, of.scores[k + shift, :, -1], of.value[k + shift])
            waiting &= ~(ended & (of.scores[k + shift, :, -1] >= policy.teacher_threshold))
    asked = begun[True] > 0
    keep_draft = ~np.isnan(draft.value) & (draft.score - policy.margin > final.score)
    value = np.where(asked & ~keep_draft, final.value, draft.value)
    return SequentialOutcome(value, cost, begun[False], begun[True])


def _held(attempts: Mapping[int, Attempts], steps: int | None, number: int, what: str) -> Attempts:
    """Return the attempts of a number of steps; `SettingError` where the table holds none, or too few."""
    if steps is None or steps not in attempts:
        raise SettingError(f"the table holds {what} of {', '.join(map(str, attempts))} steps, not of {steps}.")
    if number >= len(attempts[steps].scores):
        raise SettingError(f"the policy wants {number + 1} {what}, the table holds {len(attempts[steps].scores)}.")
    return attempts[steps]


@dataclass(frozen=True)
class PolicyFamily:
    """Policies that a search may choose from.

    Args:
        name: In tables.
        drafts: The most drafts; 0: none.
        tries: The most tries of the teacher; 0: none.
        early: Whether early stops are allowed.
        stops: Whether thresholds end a run; without, all drafts and tries are made and the best is taken.
    """

    name: str
    drafts: int
    tries: int
    early: bool = False
    stops: bool = True


def _draw(family: PolicyFamily, table: AttemptTable, rng: np.random.Generator) -> SequentialCandidate:
    """Draw a candidate: thresholds are quantiles of the scores that they are compared with."""
    drafts = teacher = None
    most = {"max_drafts": 0, "max_teacher_tries": 0}
    for name, limit in (("max_drafts", family.drafts), ("max_teacher_tries", family.tries)):
        least = 1 if name == "max_drafts" and limit else 0
        most[name] = int(rng.integers(least, limit + 1))
    if not any(most.values()):
        most["max_teacher_tries"] = 1
    changes: dict[str, Any] = {**most, "action": Decision.REGENERATE}
    if most["max_drafts"]:
        drafts = int(rng.choice(list(table.drafts)))
    if most["max_teacher_tries"]:
        teacher = int(rng.choice(list(table.teacher)))
        changes["noise"] = str(rng.choice(["same", "fresh"]))
    threshold = teacher_threshold = math.inf
    if family.stops:
        if drafts is not None:
            threshold = table.drafts[drafts].quantile(-1, rng.uniform())
        if teacher is not None:
            teacher_threshold = table.teacher[teacher].quantile(-1, rng.uniform())
    if family.early:
        if drafts is not None and rng.random() < 0.6:
            changes["draft_stops"] = _early_stops(table.drafts[drafts], rng)
        if teacher is not None and most["max_teacher_tries"] > 1 and rng.random() < 0.6:
            changes["teacher_stops"] = _early_stops(table.teacher[teacher], rng)
    return SequentialCandidate(SequentialPolicy(threshold, teacher_threshold=teacher_threshold, **changes), drafts, teacher)


def _early_stops(attempts: Attempts, rng: np.random.Generator) -> tuple[EarlyStop, ...]:
    """Draw an early stop after one of the steps whose scores are known; none where there is no such step."""
    scored = [k for k in range(attempts.steps - 1) if len(attempts.known[k])]
    if not scored:
        return ()
    step = int(rng.choice(scored))
    return (EarlyStop(step + 1, attempts.quantile(step, rng.uniform(0.0, 0.7))),)


def _moved(candidate: SequentialCandidate, table: AttemptTable, rng: np.random.Generator) -> SequentialCandidate:
    """Return a neighbour: thresholds are moved a little along their scores' quantiles, early stops left out at times."""
    policy = candidate.policy

    def moved(value: float, attempts: Attempts, step: int) -> float:
        if not math.isfinite(value):
            return value
        known = attempts.known[step]
        level = np.searchsorted(known, value) / len(known) + rng.normal(0, 0.05)
        return attempts.quantile(step, min(max(level, 0.0), 1.0))

    def stops(of: tuple[EarlyStop, ...], attempts: Attempts | None) -> tuple[EarlyStop, ...]:
        if attempts is None:
            return of
        if of and rng.random() < 0.15:
            return ()
        return tuple(EarlyStop(e.step, moved(e.threshold, attempts, e.step - 1)) for e in of)

    drafts = None if candidate.drafts is None else table.drafts[candidate.drafts]
    teacher = None if candidate.teacher is None else table.teacher[candidate.teacher]
    changes: dict[str, Any] = {
        "draft_stops": stops(policy.draft_stops, drafts), "teacher_stops": stops(policy.teacher_stops, teacher)
    }  # fmt: skip
    if drafts is not None:
        changes["threshold"] = moved(policy.threshold, drafts, -1)
    if teacher is not None:
        changes["teacher_threshold"] = moved(policy.teacher_threshold, teacher, -1)
    return dataclasses.replace(candidate, policy=dataclasses.replace(policy, **changes))


def search_policy(
    family: PolicyFamily,
    table: AttemptTable,
    budget: float,
    seed: int = 0,
    drawn: int = 1500,
    moves: int = 500,
    keep: int = 5,
) -> tuple[SequentialCandidate, SequentialOutcome] | None:
    """Return the policy of a family whose images are worth most at a mean cost within the budget, with its outcome.

    Random candidates, then the best few are moved, one after the other. The result is chosen on these rows: measure it on
    others.

    Args:
        family: What to choose from.
        table: Rows to choose on.
        budget: Mean cost a row, in the table's unit.
        seed: Of the search.
        drawn: Random candidates.
        moves: Neighbours tried, in all.
        keep: Candidates that are moved.

    Returns:
        None where no candidate keeps the budget.
    """
    rng = np.random.default_rng(seed)
    best: list[tuple[float, int, SequentialCandidate, SequentialOutcome]] = []

    def consider(candidate: SequentialCandidate, number: int) -> None:
        outcome = simulate(candidate, table)
        if outcome.mean_cost <= budget:
            # Of equal ones the cheaper.
            best.append((outcome.mean_value - 1e-6 * outcome.mean_cost / budget, -number, candidate, outcome))
            best.sort(key=lambda b: b[:2], reverse=True)
            del best[keep:]

    for n in range(drawn):
        consider(_draw(family, table, rng), n)
    for n in range(moves if best else 0):
        consider(_moved(best[n % len(best)][2], table, rng), drawn + n)
    return best[0][2:] if best else None


def split_by_prompt(prompts: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two halves of the rows, `(M,)` each; all rows of a prompt are in one of them."""
    different = sorted(set(prompts))
    np.random.default_rng(seed).shuffle(different)
    first = set(different[: len(different) // 2])
    inside = np.array([p in first for p in prompts])
    return np.flatnonzero(inside), np.flatnonzero(~inside)


def random_escalation(candidate: SequentialCandidate, table: AttemptTable) -> np.ndarray:
    """Return each row's expected value, `(R,)`, when as many rows as by the policy, but drawn by chance, go to the teacher.

    The policy has one draft and one try; the better of the two is kept where the policy keeps it.
    """
    share = float((simulate(candidate, table).tries > 0).mean())
    never, always = (
        simulate(dataclasses.replace(candidate, policy=dataclasses.replace(candidate.policy, threshold=t)), table).value
        for t in (-math.inf, math.inf)
    )
    return (1 - share) * never + share * always


def best_mixture(costs: Sequence[float], values: Sequence[float], budget: float) -> list[float] | None:
    """Return how often each setting is taken, by chance, for the most value at a mean cost within the budget.

    Args:
        costs: Mean cost of each setting.
        values: Mean value of each.
        budget: Mean cost that may be spent.

    Returns:
        Shares that sum to 1, at most two of them above 0; None where every setting costs more.
    """
    best, shares = -math.inf, None
    settings = list(enumerate(zip(costs, values, strict=True)))
    for i, (c, v) in (s for s in settings if s[1][0] <= budget):
        for j, (d, w) in settings:
            share = (budget - c) / (d - c) if d > budget else float(i == j)
            if v + share * (w - v) > best:
                best, shares = v + share * (w - v), [0.0] * len(costs)
                shares[j] += share
                shares[i] += 1 - share
    return shares
