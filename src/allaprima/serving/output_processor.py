"""What follows from a call of the cascade: the events of its requests, what is wrong with them, and how they end."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from allaprima.cascade.job import Job, Stage
from allaprima.cascade.runner import result_of
from allaprima.core.errors import PictureFailedError, ServingError
from allaprima.serving.controller import Controller
from allaprima.serving.handle import Draft, Event, Failed, Finished, HandedOver
from allaprima.serving.in_flight import InFlightRequest
from allaprima.serving.oracle_guard import OracleFailure
from allaprima.serving.scheduler import PendingEvent, Scheduler


class OutputProcessor:
    """Reads jobs after a call and finishes their requests. Not safe for threads: the engine holds its lock."""

    def __init__(
        self,
        scheduler: Scheduler,
        controller: Controller | None,
        clock: Callable[[], float],
        on_oracle_failure: OracleFailure,
        has_oracle: bool,
    ) -> None:
        self._scheduler, self._controller, self._clock = scheduler, controller, clock
        self._on_failure: OracleFailure = on_oracle_failure
        self._has_oracle = has_oracle

    def process(self, item: InFlightRequest, stage: Stage, error: Exception | None) -> list[PendingEvent]:
        """Return what there is to tell after a call for a stage; `error`: what was raised for this request."""
        job, finish = item.job, self._scheduler.finish
        if item.closed:
            return []
        if isinstance(error, ServingError):
            return [finish(item, Failed(error))]
        if error is not None:
            message = f"this picture failed, others are not touched: {type(error).__name__}: {error}"
            return [finish(item, Failed(because(PictureFailedError(message), error)))]
        told: list[PendingEvent] = []
        failed = self._has_oracle and unscored(job, stage)
        self._scheduler.meter.counts["oracle_failures"] += failed
        if stage is Stage.SCORE:
            if failed and self._on_failure == "refuse" and item.handle.request.policy.uses_scores:
                message = f"the oracle gave no score, and drafts without one are refused: {job.warning or job.score}"
                return [finish(item, Failed(PictureFailedError(message)))]
            assert job.draft is not None
            assert job.decision is not None
            told.append((item, Draft(job.draft, job.score, job.threshold, job.decision)))
        if item.stages is not None:
            if job.stage not in item.stages:
                told.append(finish(item, HandedOver(job, item.steps, item.share)))
        elif job.stage is Stage.DONE:
            told.append(finish(item, self._end(item)))
        return told

    def _end(self, item: InFlightRequest) -> Event:
        if item.job.image is None:
            return Failed(PictureFailedError(item.job.error or "there is no picture, and no reason was given"))
        result = result_of(item.handle.request.settings, item.job)
        self._scheduler.meter.finished(result, item.steps)
        if self._controller is not None:
            now = self._clock()
            self._controller.observe(now, now - item.accepted)
        return Finished(result)


def unsound(job: Job, stage: Stage) -> str | None:
    """Return what is wrong with what a model made, in words; None if all of it are numbers."""
    output = job.image if job.stage is Stage.DONE and job.image is not None else job.x
    if stage in (Stage.STUDENT, Stage.TEACHER, Stage.DECODE) and not bool(torch.isfinite(output).all()):
        return f"the {stage} stage made numbers that aren't finite at step {job.step_index}"
    return None


def unscored(job: Job, stage: Stage) -> bool:
    """Whether the oracle gave no number in this stage, though it was asked."""
    if stage is Stage.PREVIEW:
        return job.previews[-1].score is None
    score = job.score if stage is Stage.SCORE else job.final_score
    return stage in (Stage.SCORE, Stage.RECHECK) and (score is None or math.isnan(score))


def because(error: Exception, cause: BaseException | None) -> Exception:
    """Return an error that was caused by another."""
    error.__cause__ = cause
    return error
