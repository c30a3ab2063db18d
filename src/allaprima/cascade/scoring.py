"""Looking and deciding, alike for pictures painted step by step and for whole ones: the oracle's side of a machine."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from allaprima.cascade.job import Job, Stage
from allaprima.cascade.model import ControlScorer, ImageScorer
from allaprima.cascade.policy import Context, Decision, Policy
from allaprima.core.errors import SettingError


def pad_rows(x: Tensor, rows: int) -> Tensor:
    """Up to so many rows, copies of the first one: a constant shape keeps kernels, and so bits, the same."""
    missing = rows - len(x)
    return x if missing <= 0 else torch.cat([x, x[:1].expand(missing, *x.shape[1:])])


def pad_texts(texts: list[str], rows: int) -> list[str]:
    """The same for texts."""
    return texts + texts[:1] * (rows - len(texts))


def score_images(oracle: ImageScorer | None, jobs: Sequence[Job], images: Tensor, rows: int) -> list[float | None]:
    """The oracle's scores; an oracle that raises costs the pictures it raises for their score (nan), not the run."""
    if oracle is None:
        return [None] * len(jobs)
    try:
        scores = _scores(oracle, jobs, pad_rows(images, rows), pad_texts([j.request.prompt for j in jobs], rows), rows)
    except Exception as e:
        if len(jobs) > 1:
            return [score_images(oracle, [job], images[i : i + 1], rows)[0] for i, job in enumerate(jobs)]
        jobs[0].warning = f"the oracle failed: {type(e).__name__}: {e}"
        return [float("nan")]
    return [float(v) for v in scores[: len(jobs)]]


def _scores(oracle: ImageScorer, jobs: Sequence[Job], images: Tensor, prompts: list[str], rows: int) -> Tensor:
    if not isinstance(oracle, ControlScorer) or not jobs[0].request.controls:
        return oracle.score(images, prompts)
    given = [torch.cat([j.cond.tensors[f"control_{k}"] for j in jobs]) for k in range(len(jobs[0].request.controls))]
    return oracle.score_given(images, prompts, [pad_rows(c, rows) for c in given])


def count_draft(job: Job, draft: Tensor, score: float | None) -> None:
    """One more draft `(3, H, W)`; the best so far is kept."""
    job.attempts += 1
    if job.draft is None or beats(score, job.score):
        job.draft, job.score, job.best_x = draft.clone(), score, job.x


def route_one(policy: Policy, job: Job, context: Context) -> Decision | None:
    """Before there is a draft, by the job's policy, or by `policy` where it brings none."""
    (decision,) = (job.policy or policy).route(context)
    return decision


def decide_job(policy: Policy, job: Job, context: Context) -> None:
    """One by one and in order: a steered threshold moves with every decision, and each is kept with its own."""
    policy = job.policy or policy
    job.threshold = policy.threshold
    score = float("nan") if job.score is None else job.score
    (job.decision,) = policy.decide([score], context)


def recheck_jobs(oracle: ImageScorer | None, policy: Policy, jobs: Sequence[Job], rows: int) -> None:
    """Score what the teacher made, and keep the better of it and the draft."""
    images = torch.stack([j.image for j in jobs if j.image is not None])
    for job, score in zip(jobs, score_images(oracle, jobs, images, rows), strict=True):
        job.final_score, job.selected, job.stage = score, "final", Stage.DONE
        if beats(job.score, score, (job.policy or policy).margin):
            job.image, job.selected = job.draft, "draft"


def check_oracle(oracle: ImageScorer | None, policy: Policy) -> None:
    """Raise `SettingError` for a policy that compares scores when there are none."""
    if oracle is None and policy.threshold is not None:
        raise SettingError("a threshold needs an oracle: give one, or use student only, teacher only or refine all.")


def beats(score: float | None, best: float | None, margin: float = 0.0) -> bool:
    """Whether a score is better; no number never beats one, and any number beats none."""
    if score is None or math.isnan(score):
        return False
    return best is None or math.isnan(best) or score > best + margin


def charge(jobs: Sequence[Job], name: str, evaluations: float | Sequence[float], seconds: float) -> None:
    """Evaluations each, and an even share of the seconds that all took."""
    each = [evaluations] * len(jobs) if isinstance(evaluations, int | float) else evaluations
    for job, n in zip(jobs, each, strict=True):
        job.cost.add(name, n, seconds / len(jobs))
