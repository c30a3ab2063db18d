"""Policies: what to do with a scored draft. Decisions are data; the machine carries them out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Decision(StrEnum):
    """What happens to a draft."""

    ACCEPT = "accept"
    REFINE = "refine"
    REGENERATE = "regenerate"


class Policy(Protocol):
    """Decides for a group of drafts."""

    @property
    def threshold(self) -> float | None:
        """The score compared with, if the policy has one."""
        ...

    def decide(self, scores: Sequence[float]) -> list[Decision]:
        """One decision a draft."""
        ...


@dataclass(frozen=True)
class ThresholdPolicy:
    """The paper's: accept when `score >= threshold`, else refine or regenerate (arXiv 2312.10835, algorithm 1).

    A score that is not a number falls short: a draft nobody could judge goes to the teacher.
    """

    threshold: float
    otherwise: Decision = Decision.REFINE

    def decide(self, scores: Sequence[float]) -> list[Decision]:
        """One decision a draft."""
        return [Decision.ACCEPT if not math.isnan(s) and s >= self.threshold else self.otherwise for s in scores]


@dataclass(frozen=True)
class AlwaysPolicy:
    """The same decision for every draft: student only (accept), refine all, teacher only (regenerate)."""

    decision: Decision
    threshold: None = None

    def decide(self, scores: Sequence[float]) -> list[Decision]:
        """One decision a draft."""
        return [self.decision] * len(scores)
