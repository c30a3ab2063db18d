"""What a cascade gives back: the picture and everything needed to account for it and to paint it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from allaprima.cascade.job import Request
from allaprima.cascade.policy import Decision
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.cost import Cost


@dataclass(frozen=True)
class Result:
    """One picture. `error` is set, and `image` is None, when this prompt failed; others are not touched by it."""

    request: Request
    image: Tensor | None
    """`(3, H, W)` in [0, 1]."""
    draft: Tensor | None
    score: float | None
    threshold: float | None
    decision: Decision | None
    cost: Cost
    settings: CascadeSettings
    error: str | None = None

    def row(self) -> dict[str, Any]:
        """JSON-ready account of this picture, without timings that would differ between equal runs."""
        return {
            "index": self.request.index,
            "prompt": self.request.prompt,
            "negative_prompt": self.request.negative_prompt,
            "seed": self.request.seed,
            "score": self.score,
            "threshold": self.threshold,
            "decision": None if self.decision is None else str(self.decision),
            "evaluations": dict(sorted(self.cost.evaluations.items())),
            "error": self.error,
        }
