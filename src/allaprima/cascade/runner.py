"""The offline loop: many requests through one machine, drafts in full batches, escalations gathered into full batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from allaprima.cascade.job import Job, Stage
from allaprima.cascade.policy import Policy
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.result import Result
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import AllaprimaError


class Cascade(Protocol):
    """What a machine says and does here: the step-level one (`cascade.latent_cascade`), or that of whole pictures."""

    @property
    def settings(self) -> CascadeSettings:
        """Of the run."""
        ...

    @property
    def students(self) -> int:
        """How many students share the drafts."""
        ...

    def check(self, request: GenerationRequest, policy: Policy | None = None) -> None:
        """Raise `PromptError` or `SettingError` for a request that can't be painted; `policy`: the one that it brings."""
        ...

    def act(self, stage: Stage, jobs: Sequence[Job]) -> None:
        """Take jobs that are in one stage a step further."""
        ...


def run(cascade: Cascade, requests: Iterable[GenerationRequest]) -> Iterator[Result]:
    """Paint every request; results come as they are finished, not in order (`result.request.index` says which).

    Drafts run a full batch at a time; those of several students (`LatentCascade.students`) are gathered, a batch for each,
    and painted student by student from first step to last, so that batches are full and networks change hands rarely (which
    is all it is for: a mixed batch would give the same pictures). What falls short waits until a full batch of it can go to
    the teacher, or until no more drafts are coming. A request that fails gives a result with `error`; the others go on.

    Drafts are decided in the order of the requests, each exactly once unless the policy has it painted again: a policy
    whose decisions follow from their order (`calibration.steering`) gives the same ones in any batch size.
    """
    source = iter(requests)
    size = cascade.settings.batch_size
    waiting: list[Job] = []
    exhausted = False
    while not exhausted or waiting:
        if len(waiting) >= size or (exhausted and waiting):
            batch, waiting = waiting[:size], waiting[size:]
            yield from _finish(cascade, batch)
            continue
        fresh: list[Job] = []
        while len(fresh) < size * cascade.students:
            request = next(source, None)
            if request is None:
                exhausted = True
                break
            refusal = _refusal(cascade, request)
            if refusal is None:
                fresh.append(Job(request))
            else:
                yield refusal
        if fresh:
            _advance(cascade, fresh, until=(Stage.TEACHER, Stage.DONE))
            yield from (result_of(cascade.settings, j) for j in fresh if j.stage is Stage.DONE)
            waiting += [j for j in fresh if j.stage is not Stage.DONE]


def _finish(cascade: Cascade, jobs: list[Job]) -> Iterator[Result]:
    _advance(cascade, jobs, until=(Stage.DONE,))
    yield from (result_of(cascade.settings, j) for j in jobs)


def _advance(cascade: Cascade, jobs: list[Job], until: tuple[Stage, ...]) -> None:
    """Take jobs from stage to stage, the earliest first and all of it, until each has reached one of `until`."""
    while active := [j for j in jobs if j.stage not in until]:
        stage = min((j.stage for j in active), key=list(Stage).index)
        for batch in _batches(cascade, [j for j in active if j.stage is stage]):
            while batch:
                cascade.act(stage, batch)
                batch = [j for j in batch if j.stage is stage]


def _batches(cascade: Cascade, jobs: list[Job]) -> Iterator[list[Job]]:
    """Jobs of one stage in batches, in their order; what students paint, student by student."""
    groups: dict[int, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.student_index if job.stage is Stage.STUDENT else 0, []).append(job)
    size = cascade.settings.batch_size
    for group in groups.values():
        for i in range(0, len(group), size):
            yield group[i : i + size]


def _refusal(cascade: Cascade, request: GenerationRequest) -> Result | None:
    try:
        cascade.check(request)
    except AllaprimaError as e:
        return result_of(cascade.settings, Job(request), str(e))
    return None


def result_of(settings: CascadeSettings, job: Job, error: str | None = None) -> Result:
    """What a job has come to; `error`: why it went no further, if that isn't the job's own."""
    return Result(
        job.request,
        job.image,
        job.draft,
        job.score,
        job.threshold,
        job.decision,
        job.cost,
        settings,
        error or job.error,
        job.attempts,
        job.final_score,
        job.selected,
        job.warning,
        job.steps,
    )
