"""What a cascade gives back: the picture and everything needed to account for it and to paint it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from allaprima.cascade.job import PreviewScore
from allaprima.cascade.policy import Decision
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.settings import CascadeSettings
from allaprima.conditioning.edit import share_of
from allaprima.conditioning.prompt_inputs import extra_prompts
from allaprima.core.cost import Cost
from allaprima.core.errors import PromptError
from allaprima.data.images import png_bytes, to_pil


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
    tries: int = 0
    """Tries of the teacher, those that were given up included."""
    previews: tuple[PreviewScore, ...] = ()
    """What the oracle said on the way."""
    reported_steps: int | None = None
    """Network steps as the models counted them; None: as the settings say."""

    @property
    def steps(self) -> int:
        """Network steps of student and teacher (a guided step is two evaluations but one step)."""
        if self.reported_steps is not None:
            return self.reported_steps
        edit = self.request.edit
        strength = edit.strength if edit is not None and self.decision is Decision.REGENERATE else None
        return count_steps(self.settings, self.record(), strength)

    def to_png(self, text: Mapping[str, str] | None = None) -> bytes:
        """Return the image as a PNG with these text chunks. Raises `PromptError` where there is none."""
        if self.image is None:
            raise PromptError(f"{self.request.prompt!r} has no image: {self.error}.")
        return png_bytes(to_pil(self.image), dict(text or {}))

    def record(self) -> dict[str, Any]:
        """Return a JSON-ready account of this image, without timings that would differ between equal runs."""
        seldom: dict[str, Any] = {"final_score": self.final_score, "kept": self.selected, "warning": self.warning}
        seldom["steps"] = self.reported_steps
        seldom |= {"attempts": self.attempts} if self.attempts > 1 else {}
        seldom |= {"tries": self.tries} if self.tries > 1 else {}
        seldom |= {"previews": [asdict(p) for p in self.previews]} if self.previews else {}
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


def count_steps(settings: CascadeSettings, account: Mapping[str, Any], strength: float | None) -> int:
    """Return the network steps that made an image, by its settings and its record.

    Args:
        settings: Of the run.
        account: What `Result.record` returned: a model without evaluations took no steps, attempts that were given up
            took some of theirs.
        strength: Of an edit that the teacher regenerated, which takes a share of its steps; None: all of them.
    """
    teacher = settings.teacher_steps if strength is None else share_of(settings.teacher_steps, strength)
    steps = 0
    for model, whole, attempts in (("student", settings.student_steps, "attempts"), ("teacher", teacher, "tries")):
        if account["evaluations"].get(model):
            ended = [p["step"] for p in account.get("previews", ()) if p["model"] == model and p["given_up"]]
            steps += whole * (account.get(attempts, 1) - len(ended)) + sum(ended)
    return steps
