"""What a cascade gives back: the picture and everything needed to account for it and to paint it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from allaprima.cascade.policy import Decision
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.settings import CascadeSettings
from allaprima.conditioning.prompt_inputs import extra_prompts
from allaprima.core.cost import Cost


@dataclass(frozen=True)
class Result:
    """One picture. `error` is set, and `image` is None, when this prompt failed; others are not touched by it."""

    request: GenerationRequest
    image: Tensor | None
    """`(3, H, W)` in [0, 1]."""
    draft: Tensor | None
    score: float | None
    threshold: float | None
    """What the score was compared with, at the moment of the decision; None where nothing was."""
    decision: Decision | None
    cost: Cost
    settings: CascadeSettings
    error: str | None = None
    attempts: int = 1
    """Drafts painted, the best of which `draft` and `score` are; 0 when the teacher was asked at once."""
    final_score: float | None = None
    """Of the teacher's picture, when the policy looked again."""
    selected: str | None = None
    """After a second look: which picture `image` is, `draft` or `final`."""
    warning: str | None = None
    """What went wrong without stopping this picture, for example an oracle that failed."""
    steps: int | None = None
    """Network steps as the painters counted them; None: as the settings say."""

    def row(self) -> dict[str, Any]:
        """JSON-ready account of this picture, without timings that would differ between equal runs."""
        seldom: dict[str, Any] = {"final_score": self.final_score, "kept": self.selected, "warning": self.warning}
        seldom["steps"] = self.steps
        seldom |= {"attempts": self.attempts} if self.attempts > 1 else {}
        if self.request.controls:
            scales = self.request.control_scales or (1.0,) * len(self.request.controls)
            seldom["controls"] = [
                {"image": c.digest, "scale": s} for c, s in zip(self.request.controls, scales, strict=True)
            ]
        seldom |= extra_prompts(self.request)
        seldom |= {"edit": None if self.request.edit is None else self.request.edit.row()}
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
            **{k: v for k, v in seldom.items() if v is not None},
        }
