"""An accepted request on its way through an engine, and what is read of its job after a call of the cascade."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from allaprima.cascade.job import Job, Stage
from allaprima.serving.handle import Draft, RequestHandle
from allaprima.serving.loaded_cascade import LoadedCascade
from allaprima.serving.queue import QueueEntry
from allaprima.serving.snapshot import Share


@dataclass(eq=False)
class InFlightRequest:
    """A ticket, its place, and its job once it is begun. The engine's lock guards all but the job of a busy one."""

    handle: RequestHandle
    cascade_entry: LoadedCascade
    entry: QueueEntry
    job: Job
    bytes: int
    """Held while it is in flight."""
    busy: bool = False
    """In a batch now: only the thread that took it touches it."""
    cancelled: bool = False
    closed: bool = False
    """Its end is decided; whoever set this tells it."""
    steps: Counter[str] = field(default_factory=Counter[str])
    """Network steps so far, by painter."""
    stages: frozenset[Stage] | None = None
    """Those that it is taken through here; None: all, to its end."""
    share: Share = field(default_factory=Share)
    abandon: Callable[[], None] | None = None
    """Gives up what a crew does with it."""


def unsound(job: Job, stage: Stage) -> str | None:
    """Return what is wrong with what a painter made, in words; None if all of it are numbers."""
    made = job.image if job.stage is Stage.DONE and job.image is not None else job.x
    if stage in (Stage.STUDENT, Stage.TEACHER, Stage.DECODE) and not bool(torch.isfinite(made).all()):
        return f"the {stage} stage made numbers that aren't finite at step {job.step_index}"
    return None


def unscored(job: Job, stage: Stage, looked: bool) -> bool:
    """Whether the oracle was asked in this stage and gave no number; `looked`: whether there is an oracle."""
    score = job.score if stage is Stage.SCORE else job.final_score
    return looked and stage in (Stage.SCORE, Stage.RECHECK) and (score is None or math.isnan(score))


def draft_of(job: Job) -> Draft:
    """Return the event of a draft that was decided about."""
    assert job.draft is not None
    assert job.decision is not None
    return Draft(job.draft, job.score, job.threshold, job.decision)
