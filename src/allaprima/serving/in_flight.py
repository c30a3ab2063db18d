"""An accepted request on its way through an engine, and what is done to its job around a call of the machine."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from allaprima.cascade.job import Job, Stage
from allaprima.core.cost import Cost
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


def act(
    cascade_entry: LoadedCascade, stage: Stage, items: Sequence[InFlightRequest]
) -> tuple[dict[InFlightRequest, Exception], int]:
    """Take jobs a step further; the exceptions of those that fail, and how many were taken again, alone.

    After an exception in a batch its jobs go back to where they were and are taken one by one: only those fail that fail
    alone. (A batch of one has the same shape, so the others' pictures are what they would have been.)
    """
    before = [(item.job, _copy(item.job)) for item in items]
    try:
        cascade_entry.cascade.act(stage, [item.job for item in items])
    except Exception as e:
        if len(items) == 1:
            return {items[0]: e}, 0
    else:
        return {}, 0
    for job, saved in before:
        vars(job).update(vars(saved))
    return {item: e for one in items for item, e in act(cascade_entry, stage, [one])[0].items()}, len(items)


def _copy(job: Job) -> Job:
    """Machines put new tensors in place of old ones and never write into them: what must be copied is what adds up."""
    cost = Cost(dict(job.cost.evaluations), dict(job.cost.seconds))
    return dataclasses.replace(job, cost=cost, state=dict(job.state))


def unsound(job: Job, stage: Stage) -> str | None:
    """What is wrong with what a painter made, in words; None if all of it are numbers."""
    made = job.image if job.stage is Stage.DONE and job.image is not None else job.x
    if stage in (Stage.STUDENT, Stage.TEACHER, Stage.DECODE) and not bool(torch.isfinite(made).all()):
        return f"the {stage} stage made numbers that aren't finite at step {job.step_index}"
    return None


def unscored(job: Job, stage: Stage, looked: bool) -> bool:
    """Whether the oracle was asked in this stage and gave no number; `looked`: whether there is an oracle."""
    score = job.score if stage is Stage.SCORE else job.final_score
    return looked and stage in (Stage.SCORE, Stage.RECHECK) and (score is None or math.isnan(score))


def draft_of(job: Job) -> Draft:
    """The event of a draft that was decided about."""
    assert job.draft is not None
    assert job.decision is not None
    return Draft(job.draft, job.score, job.threshold, job.decision)
