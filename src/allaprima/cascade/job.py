"""A job: a request with the state of its sampling."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor

from allaprima.cascade.policy import Decision, Policy
from allaprima.cascade.request import GenerationRequest
from allaprima.core.cost import Cost
from allaprima.core.types import Condition


class Stage(StrEnum):
    """Where a job is on its way."""

    NEW = "new"
    STUDENT = "student"
    PREVIEW = "preview"
    SCORE = "score"
    TEACHER = "teacher"
    DECODE = "decode"
    RECHECK = "recheck"
    DONE = "done"


@dataclass(frozen=True)
class PreviewScore:
    """The oracle's score of a clean prediction on the way, or of an image at the end.

    Args:
        model: `student` or `teacher`.
        attempt: Drafts, or tries of the teacher, before the one that was scored.
        step: Steps it had taken.
        score: The oracle's; None where it gave no number.
        given_up: Whether the run ended there.
    """

    model: str
    attempt: int
    step: int
    score: float | None
    given_up: bool


@dataclass
class Job:
    """A request with its latents, its place in the solver's plan and what it has cost.

    Tensors have no batch dimension; conditions are bundles of one row.
    """

    request: GenerationRequest
    policy: Policy | None = None
    """Its own; None: the cascade's."""
    stage: Stage = Stage.NEW
    step_index: int = 0
    x: Tensor = field(default_factory=lambda: torch.empty(0))
    noise: Tensor = field(default_factory=lambda: torch.empty(0))
    state: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    cond: Condition = field(default_factory=lambda: Condition({}))
    """The prompt as the painters read it."""
    negative: Condition = field(default_factory=lambda: Condition({}))
    """The negative prompt, the same."""
    student_index: int = 0
    """Which of several students generates the draft (`DiffusionModel.route`)."""
    source: Tensor = field(default_factory=lambda: torch.empty(0))
    """Latents of the picture that is edited."""
    mask: Tensor | None = None
    """`(1, H, W)` of an edit: what is painted anew."""
    draft: Tensor | None = None
    """The student's picture, `(3, H, W)` in [0, 1]."""
    image: Tensor | None = None
    """The final picture, `(3, H, W)` in [0, 1]."""
    score: float | None = None
    """The oracle's, of `draft`."""
    decision: Decision | None = None
    threshold: float | None = None
    """What `score` was compared with when `decision` was made; None before that, and where nothing is compared."""
    attempts: int = 0
    """Drafts so far, those that were given up included."""
    tries: int = 0
    """Tries of the teacher so far, the same."""
    x0: Tensor = field(default_factory=lambda: torch.empty(0))
    """The clean prediction that is scored on the way."""
    previews: tuple[PreviewScore, ...] = ()
    """Every score, where runs are given up early or the teacher tries again."""
    best_x: Tensor = field(default_factory=lambda: torch.empty(0))
    """Latents of the best draft so far, which `draft` shows."""
    final_score: float | None = None
    """The oracle's, of the teacher's best image, when the policy re-checked it."""
    best_image: Tensor | None = None
    """The teacher's best image, which `final_score` is of."""
    selected: str | None = None
    """After a second look: `draft` or `final`, whichever scored higher."""
    warning: str | None = None
    """What went wrong without stopping this picture."""
    error: str | None = None
    """Why there is no picture."""
    steps: int | None = None
    """Network steps so far, where painters count them themselves (`cascade.pixel_cascade`)."""
    cost: Cost = field(default_factory=Cost)

    @property
    def prompt_embeds(self) -> Tensor:
        """`(L, D)`: what policies and routers know of the prompt; empty where models are called whole."""
        return self.cond.tensors.get("prompt_embeds", torch.zeros(1, 0, 0))[0]
