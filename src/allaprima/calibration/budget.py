"""A budget a picture in steps, network evaluations, seconds or money, and the share of drafts it sends to the teacher.

Every picture pays for its draft (student, text, decoding, oracle); the escalated ones also for the teacher (and its
decoding, and the oracle if it looks again). The mean is `draft + share * escalation`, in steps the paper's
`S + (k / 100) R` (arXiv 2312.10835, section 3.3): 5 + 0.5 * 20 = 15.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from allaprima.core.cost import Cost
from allaprima.core.errors import SettingError

Unit = Literal["steps", "evaluations", "seconds", "money"]


@dataclass(frozen=True)
class Prices:
    """What one draft and one escalation cost. Raises `SettingError` unless `draft >= 0` and `escalation > 0`."""

    unit: Unit
    draft: float
    escalation: float
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    """What the two are made of, where known: `"draft.student": 10.0, "draft.oracle": 0.174, ...`."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.draft) and math.isfinite(self.escalation) and self.draft >= 0 < self.escalation):
            raise SettingError(
                f"a draft of {self.draft!r} and an escalation of {self.escalation!r} {self.unit} are no prices: drafts cost"
                " 0 or more, escalations more than 0. Check the steps, or measure more pictures."
            )

    def mean(self, share: float) -> float:
        """Mean cost a picture when `share` of the drafts, in [0, 1], are escalated."""
        return self.draft + share * self.escalation

    def share_for(self, budget: float, clamp: bool = False) -> float:
        """Return the share, in [0, 1], that spends `budget` a picture.

        Args:
            budget: Mean cost a picture.
            clamp: Return the nearest share for a budget that can't be spent so; policies of several attempts spend it.

        Raises:
            SettingError: With the range, when the budget can't be spent.
        """
        low, high = self.draft, self.draft + self.escalation
        slack = 1e-9 * high  # a budget added up in another order
        if not clamp and not low - slack <= budget <= high + slack:
            raise SettingError(
                f"budget={budget!r} mean {self.unit} a picture is out of range: {low:.6g} (student only) to {high:.6g}"
                " (everything escalated) can be spent. Change the budget or the steps."
            )
        return min(max((budget - low) / self.escalation, 0.0), 1.0)

    @classmethod
    def from_steps(cls, student_steps: int, teacher_steps: int) -> Prices:
        """Return the paper's accounting: network steps, all else free."""
        return _added("steps", {"student": student_steps}, {"teacher": teacher_steps})

    @classmethod
    def from_costs(
        cls, accepted: Sequence[Cost], escalated: Sequence[Cost],
        unit: Literal["seconds", "evaluations"] = "seconds", average: Literal["mean", "median"] = "mean",
    ) -> Prices:  # fmt: skip
        """From whole pictures' measured costs, as `Result.cost` has them; an escalated one's contains its draft.

        A budget is a mean, so `mean` is exact; `median` shrugs off warm-up and other programs, and underestimates a mean
        with a long tail. Each model's part is averaged by itself.
        """
        if not accepted or not escalated:
            raise SettingError(f"{len(accepted)} accepted and {len(escalated)} escalated pictures: both need one or more.")
        draft, whole = (_averaged([getattr(c, unit) for c in costs], average) for costs in (accepted, escalated))
        extra = {name: whole.get(name, 0.0) - draft.get(name, 0.0) for name in {**draft, **whole}}
        return _added(unit, draft, extra)

    def in_money(self, price_an_hour: float) -> Prices:
        """Seconds at so much an hour, in the currency of `price_an_hour`."""
        if self.unit != "seconds":
            raise SettingError(f"money is counted from seconds, these prices are in {self.unit}: use Prices.from_costs.")
        if not (math.isfinite(price_an_hour) and price_an_hour > 0):
            raise SettingError(f"price_an_hour={price_an_hour!r} must be a number above 0.")
        rate = price_an_hour / 3600
        return Prices("money", self.draft * rate, self.escalation * rate, {k: v * rate for k, v in self.parts.items()})


def _added(unit: Unit, draft: Mapping[str, float], escalation: Mapping[str, float]) -> Prices:
    parts = {f"draft.{k}": float(v) for k, v in draft.items() if v}
    parts |= {f"escalation.{k}": float(v) for k, v in escalation.items() if v}
    return Prices(unit, float(sum(draft.values())), float(sum(escalation.values())), parts)


def _averaged(rows: Sequence[Mapping[str, float]], average: Literal["mean", "median"]) -> dict[str, float]:
    of = np.mean if average == "mean" else np.median
    names = sorted({name for row in rows for name in row})
    return {name: float(of([row.get(name, 0.0) for row in rows])) for name in names}
