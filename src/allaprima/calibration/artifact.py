"""The calibration artifact: held-out scores, and what they belong to.

It keeps the scores themselves, so any budget's threshold can be read off it without painting again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from allaprima._version import __version__
from allaprima.calibration.threshold import bootstrap_interval, mean_steps, share_for_budget, threshold_for
from allaprima.core.errors import CalibrationError

SCHEMA = 1


@dataclass(frozen=True)
class Calibration:
    """Scores of held-out drafts with the fingerprints they hold for."""

    budget: float
    """Mean steps a picture of the default threshold."""
    threshold: float
    interval: tuple[float, float]
    percentile: float
    scores: tuple[float, ...]
    settings: dict[str, Any]
    """Student side: steps, solver, guidance, size."""
    fingerprints: dict[str, str]
    prompts_sha256: str
    version: str = __version__
    schema: int = SCHEMA

    @classmethod
    def make(
        cls, scores: list[float], budget: float, student_steps: int, teacher_steps: int, settings: dict[str, Any],
        fingerprints: dict[str, str], prompts_sha256: str,
    ) -> Calibration:  # fmt: skip
        """Calibrate to a budget of mean steps."""
        share = share_for_budget(budget, student_steps, teacher_steps)
        scores = [round(s, 7) for s in scores]
        return cls(
            budget, threshold_for(scores, share), bootstrap_interval(scores, share), 100 * share, tuple(sorted(scores)),
            settings, fingerprints, prompts_sha256,
        )  # fmt: skip

    def threshold_for_budget(self, budget: float, student_steps: int, teacher_steps: int) -> float:
        """The threshold that spends `budget` mean steps."""
        return threshold_for(self.scores, share_for_budget(budget, student_steps, teacher_steps))

    def expected_steps(self, threshold: float, student_steps: int, teacher_steps: int) -> float:
        """Mean steps a picture at this threshold, on the calibration's prompts."""
        share = sum(s < threshold for s in self.scores) / len(self.scores)
        return mean_steps(student_steps, teacher_steps, share)

    def check(self, settings: dict[str, Any], fingerprints: dict[str, str]) -> None:
        """Raise `CalibrationError` naming the first difference to what this was made with."""
        for kind, mine, theirs in (("settings", self.settings, settings), ("fingerprints", self.fingerprints, fingerprints)):
            for name in sorted({*mine, *theirs}):
                if mine.get(name) != theirs.get(name):
                    raise CalibrationError(
                        f"this calibration does not belong to this run: {kind}.{name} was {mine.get(name)!r}, is now"
                        f" {theirs.get(name)!r}. Run `allaprima calibrate` with these settings, or give --threshold."
                    )

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Inverse of `save`; raises `CalibrationError` for an unreadable file or another schema."""
        try:
            raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if raw["schema"] != SCHEMA:
                raise CalibrationError(f"{path} has schema {raw['schema']}, this version reads {SCHEMA}: calibrate again.")
            raw |= {"interval": tuple(raw["interval"]), "scores": tuple(raw["scores"])}
            return cls(**raw)
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise CalibrationError(f"{path} is not a calibration: {e}. Make one with `allaprima calibrate`.") from e
