"""The calibration artifact: held-out scores, what they cost, and what they belong to.

It keeps the scores themselves, so any budget's threshold can be read off it without painting again. A policy that is more
than a threshold is kept as it was fitted, for its one budget.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from allaprima._version import __version__
from allaprima.calibration.budget import Prices
from allaprima.calibration.drift import DriftMonitor
from allaprima.calibration.steering import SteeredThreshold
from allaprima.calibration.threshold import threshold_for
from allaprima.calibration.uncertainty import bootstrap
from allaprima.cascade.policy import Decision, Policy, ThresholdPolicy, policy_from_dict, policy_to_dict
from allaprima.cascade.settings import OMITTED_DEFAULTS, CascadeSettings
from allaprima.core.errors import CalibrationError

SCHEMA = 2


@dataclass(frozen=True)
class Calibration:
    """Scores of held-out drafts with the prices, settings and fingerprints they hold for."""

    budget: float
    """Mean cost a picture of the default threshold, in `prices.unit`."""
    prices: Prices
    """What a draft and an escalation cost with the settings below."""
    threshold: float
    interval: tuple[float, float]
    """95 % bootstrap interval of the threshold."""
    cost_interval: tuple[float, float]
    """95 % bootstrap interval of the mean cost on unseen prompts at this threshold."""
    percentile: float
    """Percentage of drafts that is escalated."""
    scores: tuple[float, ...]
    settings: dict[str, Any]
    """Student side: steps, solver, guidance, size. A score holds for these only."""
    action: dict[str, Any]
    """Teacher side: steps, solver, strategy, sigma. A price holds for these only."""
    fingerprints: dict[str, str]
    prompts_sha256: str
    seconds_per_draft: float
    """What one more held-out draft costs to paint and score, where this was made."""
    policy: dict[str, Any] | None = None
    """A fitted policy beyond the threshold (`policy_to_dict`), for `budget` alone."""
    version: str = __version__
    schema: int = SCHEMA

    @classmethod
    def make(
        cls, scores: Sequence[float], budget: float, prices: Prices, settings: dict[str, Any], action: dict[str, Any],
        fingerprints: dict[str, str], prompts_sha256: str, seconds_per_draft: float = 0.0, policy: Policy | None = None,
    ) -> Calibration:  # fmt: skip
        """Calibrate to a budget in the unit of the prices."""
        share = prices.share_for(budget, clamp=policy is not None)
        around = bootstrap(scores, share, prices)
        written = None if policy is None or isinstance(policy, ThresholdPolicy) else policy_to_dict(policy)
        return cls(
            budget, prices, threshold_for(scores, share), around.threshold_interval, around.cost_interval, 100 * share,
            tuple(sorted(scores)), settings, action, fingerprints, prompts_sha256, seconds_per_draft, written,
        )  # fmt: skip

    def applied(self, settings: CascadeSettings) -> CascadeSettings:
        """Return these settings with those this was made for in their place."""
        return CascadeSettings.from_dict({**settings.to_dict(), **OMITTED_DEFAULTS, **self.settings, **self.action})

    def threshold_for_budget(self, budget: float, action: dict[str, Any]) -> float:
        """Return the threshold that spends `budget`, in this calibration's unit, with the teacher's settings at hand."""
        return threshold_for(self.scores, self.prices_for(action).share_for(budget))

    def prices_for(self, action: dict[str, Any]) -> Prices:
        """Prices with the teacher's settings at hand.

        Those in steps follow the settings; what was measured (evaluations, seconds, money) holds for the settings it was
        measured with, others raise `CalibrationError` with the difference named.
        """
        if self.prices.unit == "steps":
            return Prices.from_steps(int(self.prices.draft), int(action["teacher_steps"]))
        _refuse_differences("action", self.action, action)
        return self.prices

    def steered(self, budget: float | None, action: dict[str, Any]) -> SteeredThreshold:
        """Return a threshold that is corrected during one run so that its mean cost is the budget;
        make one for every run."""
        if self.policy is not None:
            raise CalibrationError(
                f"this calibration's policy is {self.policy['kind']}, and only a threshold can be steered. Run `allaprima"
                " calibrate` without --policy, or leave --steer out."
            )
        wanted = self.budget if budget is None else budget
        return SteeredThreshold(self.scores, self.prices_for(action), wanted, otherwise=Decision(action["strategy"]))

    def monitor(self, threshold: float) -> DriftMonitor:
        """Watches whether drafts fall below this threshold as often as the held-out ones did."""
        return DriftMonitor(sum(s < threshold for s in self.scores) / len(self.scores), len(self.scores))

    def policy_for(self, budget: float | None, action: dict[str, Any]) -> Policy:
        """Return the calibrated policy; a budget of one's own is possible for thresholds only."""
        wanted = self.budget if budget is None else budget
        if self.policy is None:
            return ThresholdPolicy(self.threshold_for_budget(wanted, action), Decision(action["strategy"]))
        if wanted != self.budget:
            raise CalibrationError(
                f"this calibration's policy ({self.policy['kind']}) was fitted to {self.budget:g} {self.prices.unit}, not to"
                f" {wanted:g}. Run `allaprima calibrate --budget {wanted:g}` again, or leave --budget out."
            )
        _refuse_differences("action", self.action, action)
        return policy_from_dict(self.policy)

    def check(self, settings: dict[str, Any], fingerprints: dict[str, str]) -> None:
        """Raise `CalibrationError` naming the first difference to what this was made with."""
        _refuse_differences("settings", self.settings, settings)
        _refuse_differences("fingerprints", self.fingerprints, fingerprints)

    def save(self, path: Path) -> None:
        """Write as JSON, beside and renamed."""
        beside = path.with_name(path.name + ".part")
        beside.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        beside.replace(path)

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Inverse of `save`; raises `CalibrationError` for an unreadable file or another schema."""
        try:
            raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if raw["schema"] != SCHEMA:
                raise CalibrationError(f"{path} has schema {raw['schema']}, this version reads {SCHEMA}: calibrate again.")
            raw |= {k: tuple(raw[k]) for k in ("interval", "cost_interval", "scores")}
            raw["prices"] = Prices(**raw["prices"])
            return cls(**raw)
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise CalibrationError(f"{path} is not a calibration: {e}. Make one with `allaprima calibrate`.") from e


def _refuse_differences(kind: str, mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name in sorted({*mine, *theirs}):
        if mine.get(name) != theirs.get(name):
            raise CalibrationError(
                f"this calibration does not belong to this run: {kind}.{name} was {mine.get(name)!r}, is now"
                f" {theirs.get(name)!r}. Run `allaprima calibrate` with these settings, or give --threshold."
            )
