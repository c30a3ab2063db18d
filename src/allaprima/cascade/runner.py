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
    """Generate an image for every request; results come as they are finished, not in order (`result.request.index`).

    Jobs of many requests are under way at once, and a stage is taken when a full batch of it is ready, the latest stage
    first: what ends early (an accepted draft, a run that was given up) makes room for the next request, and escalated
    drafts wait for a full batch of the teacher's. When no more requests come, the earliest stage goes on with what there is.
    Drafts of several students (`BaseCascade.students`) go by student, so that networks change hands rarely. A request that
    fails gives a result with `error`; the others go on (with `isolate=False` an exception ends the run instead).

    First drafts are decided in the order of the requests: a policy whose decisions follow from their order
    (`calibration.steering`) gives the same ones in any batch size.
    """
    source = iter(requests)
    jobs: list[Job] = []
    # So many that a student who is seldom asked doesn't keep the others waiting for a full batch of its drafts.
    capacity = cascade.settings.batch_size * (cascade.students + len(Stage))
    exhausted = False
    while not exhausted or jobs:
        batch = _next_batch(cascade, jobs, partial=exhausted or len(jobs) >= capacity)
        if batch is None:
            request = next(source, None)
            if request is None:
                exhausted = True
            elif (refusal := _refusal(cascade, request)) is not None:
                yield refusal
            else:
                jobs.append(Job(request))
            continue
        if isolate:
            failures, _ = act_isolated(cascade, batch[0].stage, batch)
            for i, e in failures.items():
                batch[i].error = str(e) if isinstance(e, AllaprimaError) else f"{type(e).__name__}: {e}"
                batch[i].image, batch[i].stage = None, Stage.DONE
        else:
            cascade.act(batch[0].stage, batch)
        yield from (result_of(cascade.settings, j) for j in batch if j.stage is Stage.DONE)
        jobs = [j for j in jobs if j.stage is not Stage.DONE]


def _next_batch(cascade: BaseCascade, jobs: Sequence[Job], partial: bool) -> list[Job] | None:
    """Return the jobs that go a step further together.

    Args:
        cascade: Whose batch size it is.
        jobs: All that are under way, in the order of their requests.
        partial: Whether a batch may have fewer rows: no more requests come.

    Returns:
        The latest stage's full batch; without one, None, or the earliest stage's jobs where `partial`.
    """
    groups: dict[tuple[Stage, int], list[Job]] = {}
    undecided = False
    for job in jobs:
        if job.stage is Stage.SCORE and undecided:
            continue
        undecided = undecided or (job.attempts == 0 and job.stage in (Stage.NEW, Stage.STUDENT, Stage.PREVIEW))
        groups.setdefault((job.stage, job.student_index if job.stage is Stage.STUDENT else 0), []).append(job)
    order = sorted(groups, key=lambda key: list(Stage).index(key[0]))
    size = cascade.settings.batch_size
    for key in reversed(order):
        if len(groups[key]) >= size:
            return groups[key][:size]
    return groups[order[0]][:size] if partial and order else None


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
        job.tries,
        job.previews,
        job.steps,
    )
