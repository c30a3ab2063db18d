"""A threshold that is corrected as pictures are painted, so that the mean cost of a run is its budget.

A fixed threshold from n prompts misses its budget by a draw from the Beta law (`uncertainty`): 500 prompts keep a mean
of 15 steps within 3 % in 69 % of calibrations only. What is missing need not be painted beforehand, since every draft
of the run is scored anyway. The paper's percentile (arXiv 2312.10835, section 3.3) becomes a level that moves,

    level_(t+1) = level_t + (share - escalated_t) / horizon,    tau_t = the level_t quantile of the held-out scores,

which is adaptive conformal inference (Gibbs and Candes, arXiv 2106.00170, equation 2) with step 1 / horizon. At level 0
or less everything is accepted, at 1 or more everything escalated, so the level cannot run away and the sum of errors is
bounded for *any* sequence of scores: shifted, tied, or chosen by an adversary. See `worst_case`.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from allaprima.calibration.budget import Prices
from allaprima.calibration.threshold import Scores
from allaprima.cascade.policy import Context, Decision, DraftFirstPolicy
from allaprima.core.errors import CalibrationError, SettingError


class SteeredThreshold(DraftFirstPolicy):
    """A policy (`cascade.policy.Policy`) that spends `budget` a picture in the mean over a run.

    Decisions follow from the scores and their order alone: the same requests in the same order give the same decisions
    in any batch size, as long as their scores are the same. Unlike under a fixed threshold, a picture's decision depends
    on the pictures before it. `resume` keeps that so for a run that was stopped.

    `horizon`: pictures over which a deviation is paid back. Short: the budget is kept sooner, the threshold trembles more
    (its level by a standard deviation of sqrt(p (1 - p) / (2 horizon)), .05 at 50). With scores outside the held-out
    ones the budget still holds, but which drafts are sent is then a matter of order: see `drift`.
    """

    def __init__(
        self, scores: Scores, prices: Prices, budget: float, horizon: float = 50, otherwise: Decision = Decision.REFINE
    ) -> None:
        values = np.sort(np.asarray(scores, dtype=np.float64))
        if len(values) < 2 or not np.isfinite(values).all():
            raise SettingError(f"{len(values)} scores, {np.isfinite(values).sum()} of them numbers: at least 2 are due.")
        if not (math.isfinite(horizon) and horizon >= 1):
            raise SettingError(f"horizon={horizon!r} must be 1 picture or more.")
        self.prices, self.budget, self.horizon, self.otherwise = prices, budget, horizon, otherwise
        self.share = prices.share_for(budget)
        self._scores: list[float] = values.tolist()
        self.pictures = 0
        self.spent = 0.0
        self._history: deque[Decision | None] = deque()

    @property
    def owed(self) -> float:
        """Escalations the run is behind its budget; negative when it is ahead."""
        return (self.pictures * self.budget - self.spent) / self.prices.escalation

    @property
    def threshold(self) -> float:
        """What the next score must reach: exactly `score >= threshold` is accepted, so it tells that decision for ever.

        Infinite where all are accepted (-) or escalated (+). A score equal to tau goes whichever way brings the run back
        to its budget (ties are split to the picture): while escalations are owed, this is the next number above tau.
        """
        owed = self.owed
        level = self.share + owed / self.horizon if 0 < self.share < 1 else self.share
        if not 0 < level < 1:
            return math.inf if level >= 1 else -math.inf
        tau = self._scores[math.ceil(level * (len(self._scores) - 1))]
        return math.nextafter(tau, math.inf) if owed > 0 else tau

    @property
    def mean_cost(self) -> float:
        """Realised mean cost a picture so far; the budget before the first."""
        return self.spent / self.pictures if self.pictures else self.budget

    def worst_case(self, pictures: int) -> float:
        """The most by which the mean cost of that many pictures can differ from the budget, whatever their scores.

        `escalation * (horizon * max(p, 1 - p) + 1) / pictures`, as long as prices are what pictures cost and scores are
        numbers. Scores that are like the held-out ones stay far below it.
        """
        return self.prices.escalation * (self.horizon * max(self.share, 1 - self.share) + 1) / pictures

    def decide(self, scores: Sequence[float], context: Context | None = None) -> list[Decision]:
        """One decision a draft, in order. A score that is not a number is escalated, and paid for by later ones."""
        decisions: list[Decision] = []
        for score in scores:
            decision = Decision.ACCEPT if score >= self.threshold else self.otherwise
            self._count(decision)
            if self._history:
                self._history.popleft()
                self._catch_up()
            decisions.append(decision)
        return decisions

    def _count(self, decision: Decision) -> None:
        self.pictures += 1
        self.spent += self.prices.draft + (0 if decision is Decision.ACCEPT else self.prices.escalation)

    def resume(self, history: Iterable[Decision | None]) -> None:
        """Go on with a run that was stopped: its pictures' decisions in the order of requests, None where one is due.

        What is finished need not be the first pictures: escalated ones are finished later than they are decided. Each
        finished one is counted when its turn comes, so those still to be decided (again) meet the very thresholds of a
        run that was never stopped. Leave out requests that get no decision, such as refused prompts.
        """
        self._history = deque(history)
        self._catch_up()

    def _catch_up(self) -> None:
        while self._history and (decision := self._history[0]) is not None:
            self._count(decision)
            self._history.popleft()

    def identity(self) -> dict[str, Any]:
        """JSON-ready: what decisions follow from, beside scores and their order."""
        digest = hashlib.sha256(repr(self._scores).encode()).hexdigest()
        return {
            "budget": self.budget, "unit": self.prices.unit, "draft": self.prices.draft,
            "escalation": self.prices.escalation, "horizon": self.horizon, "scores_sha256": digest,
        }  # fmt: skip

    def correct(self, difference: float) -> None:
        """Charge what pictures really cost above (or, negative, below) their price, e.g. measured seconds."""
        if not math.isfinite(difference):
            raise SettingError(f"difference={difference!r} must be a number of {self.prices.unit}.")
        self.spent += difference

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready; what a resumed run goes on from."""
        return {"budget": self.budget, "unit": self.prices.unit, "pictures": self.pictures, "spent": self.spent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`; `CalibrationError` for the state of another budget."""
        if (state.get("budget"), state.get("unit")) != (self.budget, self.prices.unit):
            raise CalibrationError(
                f"this state spent {state.get('budget')!r} {state.get('unit')}, this run spends {self.budget!r}"
                f" {self.prices.unit}: start it afresh, or use the budget it began with."
            )
        self.pictures, self.spent = int(state["pictures"]), float(state["spent"])
