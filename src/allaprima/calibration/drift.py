"""Does the share of drafts that fall short still agree with the calibration? An alarm that may be watched for ever.

"Nothing changed" means that held-out and live scores are exchangeable. Then (scores without ties) the true share below
the k-th of n held-out scores is Beta(k, n + 1 - k), and whether each live draft falls short is a Polya urn: after s of m,
the next one does with probability (k + s) / (n + 1 + m). That is the null hypothesis, the calibration's own uncertainty
included, and known exactly. Against it stands "from picture j on the share is any other, uniform in 0..1". The evidence

    M = sum_j w_j P(pictures after j | changed at j) / P(pictures after j | urn),   sum_j w_j = 1,

is a martingale with mean 1 while nothing changes, so by Ville's inequality it *ever* reaches 1 / alpha with probability
alpha at most, however long one looks. Start 0 has half of the weight, start i (every 100 pictures) 1 / (2 i (i + 1)).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from allaprima.calibration.uncertainty import rank
from allaprima.core.errors import CalibrationError, SettingError

EVERY = 100
"""Pictures between two starts."""
STARTS = 200
"""Starts kept: the first and the latest. Dropping some only lowers the evidence."""


class DriftMonitor:
    """Watches whether drafts fall short (`score < threshold`) as often as calibrated.

    `calibrated_share`: the share asked of `threshold_for`, or the share of the n held-out scores below the threshold.
    `alpha`: probability of ever alarming when nothing changed. Under `SteeredThreshold` feed `score < the calibrated
    threshold`, not what was escalated, which is held at the budget whatever happens. With tied scores the share is the
    one below the tie and the urn is a model of it, not a law.
    """

    def __init__(self, calibrated_share: float, n_calibration: int, alpha: float = 0.01) -> None:
        if not (0 <= calibrated_share <= 1 and n_calibration >= 2 and 0 < alpha < 1):
            raise SettingError(
                f"calibrated_share={calibrated_share!r}, n_calibration={n_calibration!r}, alpha={alpha!r}:"
                " 0..1, 2 or more held-out scores, and between 0 and 1 are due."
            )
        self.share, self.n, self.alpha = calibrated_share, n_calibration, alpha
        self.pictures = 0
        self.fallen = 0
        self.alarm_at: int | None = None
        """The picture, counted from 1, at which it alarmed; alarms stay."""
        self._urn = 0.0  # log P(all pictures | urn)
        self._log_evidence = 0.0
        # By start: pictures before it, those of them fallen short, log P(they | urn), log P(pictures after it | changed).
        self._starts = np.zeros((1, 4))

    @property
    def alarm(self) -> bool:
        """Whether the evidence has ever reached 1 / alpha."""
        return self.alarm_at is not None

    @property
    def evidence(self) -> float:
        """M, 0 or more: how much likelier the pictures so far are under a change. Inf past a float's range."""
        return math.exp(self._log_evidence) if self._log_evidence < 700 else math.inf

    def update(self, escalated: bool | int | Sequence[bool] | Sequence[int] | np.ndarray) -> bool:
        """Count one draft, or several in order (any split into calls gives the same); returns `alarm`."""
        given = np.atleast_1d(np.asarray(escalated))
        if given.ndim != 1 or not np.isin(given, (0, 1)).all():
            raise SettingError("escalated must be true or false, or a row of them, one a draft.")
        given = given.astype(np.float64)
        while len(given):
            room = EVERY - self.pictures % EVERY
            self._advance(given[:room])
            given = given[room:]
        return self.alarm

    def _advance(self, x: np.ndarray) -> None:
        """Up to the next start."""
        k = rank(self.share, self.n)
        before = np.arange(len(x))
        fallen = self.fallen + np.cumsum(x) - x
        chance = (k + fallen) / (self.n + 1 + self.pictures + before)
        urn = self._urn + np.cumsum(np.log(np.where(x == 1, chance, 1 - chance)))
        at, had, urn_at, changed = self._starts.T[:, :, None]
        chance = (1 + fallen - had) / (2 + self.pictures + before - at)
        changed = changed + np.cumsum(np.log(np.where(x == 1, chance, 1 - chance)), axis=1)
        i = at / EVERY
        weight = np.where(i == 0, 0.5, 0.5 / np.maximum(i * (i + 1), 1))
        unspent = 0.5 / (self.pictures // EVERY + 1)  # starts still to come, on which there is no evidence yet
        terms = np.log(weight) + changed - (urn - urn_at)
        evidence = np.logaddexp(np.logaddexp.reduce(terms, axis=0), math.log(unspent))
        over = np.flatnonzero(evidence >= -math.log(self.alpha))
        if len(over) and self.alarm_at is None:
            self.alarm_at = self.pictures + int(over[0]) + 1
        self.pictures, self.fallen = self.pictures + len(x), self.fallen + int(x.sum())
        self._urn, self._log_evidence = float(urn[-1]), float(evidence[-1])
        self._starts[:, 3] = changed[:, -1]
        if self.pictures % EVERY == 0:
            fresh = np.array([[self.pictures, self.fallen, self._urn, 0.0]])
            kept = self._starts if len(self._starts) < STARTS else np.delete(self._starts, 1, axis=0)
            self._starts = np.concatenate([kept, fresh])

    def message(self) -> str:
        """One line for a log: what was seen, what was calibrated, what to do."""
        seen = f"{self.fallen / self.pictures:.1%} of {self.pictures}" if self.pictures else "none of 0"
        line = f"{seen} drafts fell short, {self.share:.1%} were calibrated ({self.n} prompts); evidence {self.evidence:.3g}"
        if self.alarm_at is None:
            return f"no drift: {line}, alarm at {1 / self.alpha:.4g}"
        at, had = self._starts[int(np.argmax(self._starts[:, 3] + self._starts[:, 2])), :2]
        late = self.pictures - int(at)
        since = f", {(self.fallen - had) / late:.1%} since picture {int(at)}" if late else ""
        return (
            f"drift, alarmed at picture {self.alarm_at}: {line}{since}. Prompts or models are not the calibration's:"
            " run `allaprima calibrate` on prompts like these."
        )

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_state` goes on from it."""
        return {
            "share": self.share, "n": self.n, "alpha": self.alpha, "pictures": self.pictures, "fallen": self.fallen,
            "alarm_at": self.alarm_at, "urn": self._urn, "log_evidence": self._log_evidence,
            "starts": self._starts.tolist(),
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> DriftMonitor:
        """Inverse of `state_dict`; `CalibrationError` for what is not one."""
        try:
            made = cls(state["share"], state["n"], state["alpha"])
            made.pictures, made.fallen, made.alarm_at = state["pictures"], state["fallen"], state["alarm_at"]
            made._urn, made._log_evidence = state["urn"], state["log_evidence"]
            made._starts = np.array(state["starts"], dtype=np.float64).reshape(-1, 4)
        except (KeyError, TypeError, ValueError) as e:
            raise CalibrationError(f"this is not a drift monitor's state: {e!r}. Begin a new one.") from e
        return made
