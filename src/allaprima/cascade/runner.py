"""The offline loop: many requests through one cascade, drafts in full batches, escalations gathered into full batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from allaprima.cascade.base import BaseCascade
from allaprima.cascade.job import Job, Stage
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.result import Result
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.cost import Cost
from allaprima.core.errors import AllaprimaError


def run(cascade: BaseCascade, requests: Iterable[GenerationRequest], isolate: bool = True) -> Iterator[Result]:
    """Paint every request; results come as they are finished, not in order (`result.request.index` says which).

    Drafts run a full batch at a time; those of several students (`LatentCascade.students`) are gathered, a batch for each,
    and painted student by student from first step to last, so that batches are full and networks change hands rarely (which
    is all it is for: a mixed batch would give the same pictures). What falls short waits until a full batch of it can go to
    the teacher, or until no more drafts are coming. A request that fails gives a result with `error`; the others go on
    (with `isolate=False` an exception ends the run instead).

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
            _advance(cascade, batch, (Stage.DONE,), isolate)
            yield from (result_of(cascade.settings, j) for j in batch)
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
            _advance(cascade, fresh, (Stage.TEACHER, Stage.DONE), isolate)
            yield from (result_of(cascade.settings, j) for j in fresh if j.stage is Stage.DONE)
            waiting += [j for j in fresh if j.stage is not Stage.DONE]


def _advance(cascade: BaseCascade, jobs: list[Job], until: tuple[Stage, ...], isolate: bool) -> None:
    """Take jobs from stage to stage, the earliest first and all of it, until each has reached one of `until`."""
    while active := [j for j in jobs if j.stage not in until]:
        stage = min((j.stage for j in active), key=list(Stage).index)
        for batch in _batches(cascade, [j for j in active if j.stage is stage]):
            while batch:
                if isolate:
                    failures, _ = act_isolated(cascade, stage, batch)
                    for i, e in failures.items():
                        batch[i].error = str(e) if isinstance(e, AllaprimaError) else f"{type(e).__name__}: {e}"
                        batch[i].image, batch[i].stage = None, Stage.DONE
                else:
                    cascade.act(stage, batch)
                batch = [j for j in batch if j.stage is stage]


def act_isolated(cascade: BaseCascade, stage: Stage, jobs: Sequence[Job]) -> tuple[dict[int, Exception], int]:
    """Take jobs a step further; a batch that raises is retried one by one, so that only those fail that fail alone.

    A batch of one has the same shape, so the others' images are what they would have been.

    Returns:
        Exceptions by index into `jobs`, and how many jobs were retried.
    """
    saved = [_copy(job) for job in jobs]
    try:
        cascade.act(stage, jobs)
    except Exception as e:
        if len(jobs) == 1:
            return {0: e}, 0
    else:
        return {}, 0
    for job, before in zip(jobs, saved, strict=True):
        vars(job).update(vars(before))
    failures = {i: e for i, job in enumerate(jobs) for e in act_isolated(cascade, stage, [job])[0].values()}
    return failures, len(jobs)


def _copy(job: Job) -> Job:
    """Cascades put new tensors in place of old ones and never write into them: what must be copied is what adds up."""
    cost = Cost(dict(job.cost.evaluations), dict(job.cost.seconds))
    return dataclasses.replace(job, cost=cost, state=dict(job.state))


def _batches(cascade: BaseCascade, jobs: list[Job]) -> Iterator[list[Job]]:
    """Jobs of one stage in batches, in their order; what students paint, student by student."""
    groups: dict[int, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.student_index if job.stage is Stage.STUDENT else 0, []).append(job)
    size = cascade.settings.batch_size
    for group in groups.values():
        for i in range(0, len(group), size):
            yield group[i : i + size]


def _refusal(cascade: BaseCascade, request: GenerationRequest) -> Result | None:
    try:
        cascade.check(request)
    except AllaprimaError as e:
        return result_of(cascade.settings, Job(request), str(e))
    return None


def result_of(settings: CascadeSettings, job: Job, error: str | None = None) -> Result:
    """Return what a job has come to; `error`: why it went no further, if that isn't the job's own."""
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
