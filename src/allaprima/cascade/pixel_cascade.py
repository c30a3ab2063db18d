"""The cascade of whole pictures: a machine with the same stages, policies, costs and results, for painters that are called.

For models of families that aren't known, and for servers: the student is asked for a picture, the oracle looks, and the
teacher paints over it (image to image at a strength) or paints anew. Step-level batching doesn't apply; painters get up to
`batch_size` asks at once. Seeds: the student paints with a generator of the request's seed, so a draft is what the pipeline
paints with `generator=torch.Generator().manual_seed(seed)`, and so is what the teacher paints anew; it paints over a draft
with `derived(seed, "rollback", 0)`, for a draft's own noise on top of it is no noise; later drafts have `derived(seed,
"initial", k)`.

A picture that fails costs itself only: without a draft it is an error, with one the draft is kept and a warning says why.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from allaprima.cascade.job import Job, Stage
from allaprima.cascade.model import ImageScorer
from allaprima.cascade.policy import AlwaysPolicy, BandPolicy, Context, Decision, Policy, PreRoute, ThresholdPolicy
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.scoring import charge, check_oracle, count_draft, decide_job, recheck_jobs, route_one, score_images
from allaprima.cascade.settings import CascadeSettings
from allaprima.conditioning.prompt_inputs import extra_prompts
from allaprima.core.errors import SettingError
from allaprima.core.seeds import derive
from allaprima.diffusion.noising import Strength
from allaprima.models.external.image_generator import GeneratedImage, GeneratorRequest, ImageGenerator

SEEDS = 2**31
"""Seeds of asks are below this: some servers take no larger ones."""


def derived(seed: int, purpose: str, step: int) -> int:
    """The seed of a further picture of a request."""
    return derive(seed, purpose, step) % SEEDS


class PixelCascade:
    """Student, oracle, policy and teacher, a batch of whole pictures at a time."""

    students = 1

    def __init__(
        self,
        student: ImageGenerator,
        teacher: ImageGenerator,
        oracle: ImageScorer | None,
        policy: Policy,
        settings: CascadeSettings,
    ) -> None:
        self.settings, self.policy, self.oracle = settings, policy, oracle
        self._student, self._teacher = student, teacher
        self.strength = settings.sigma.value if isinstance(settings.sigma, Strength) else None
        self._ways = self._ways_of(policy)

    def _ways_of(self, policy: Policy) -> set[Decision]:
        """How the teacher may be asked under a policy. Raises `SettingError` for what these painters can't do."""
        check_oracle(self.oracle, policy)
        inner: Any = policy
        ways = {Decision(self.settings.strategy)}
        while inner is not None:
            if isinstance(inner, AlwaysPolicy):
                ways = {inner.decision}
            elif isinstance(inner, ThresholdPolicy):
                ways = {inner.otherwise}
            elif isinstance(inner, BandPolicy):
                ways = {Decision.REFINE, Decision.REGENERATE}
            if isinstance(inner, PreRoute) or hasattr(inner, "model"):
                raise SettingError(f"{type(inner).__name__} reads prompts' hidden states, which whole painters don't show.")
            inner = getattr(inner, "inner", None)
        if Decision.REFINE in ways and not self._teacher.paints_over:
            raise SettingError("this teacher can't paint over a picture: choose strategy='regenerate'.")
        if Decision.REFINE in ways and self.strength is None:
            raise SettingError(
                f"sigma={self.settings.sigma!r}: how much of a draft is painted over is a share of the schedule here,"
                " Strength(0.5) or --sigma 0.5 --sigma-is strength, for the schedule itself isn't known."
            )
        return ways & {Decision.REFINE, Decision.REGENERATE}

    def check(self, request: GenerationRequest, policy: Policy | None = None) -> None:
        """Raise `PromptError` or `SettingError` for a request that can't be painted; `policy`: the one that it brings."""
        if request.edit is not None or request.controls:
            raise SettingError("pictures to edit or to be led by need models of a known family: ask for text alone.")
        self._student.check(self._ask(request, True))
        for way in sorted(self._ways if policy is None else self._ways_of(policy)):
            # As it will be asked: some can only paint over a picture.
            blank = torch.zeros(3, self.settings.height, self.settings.width)
            over = {"image": blank, "strength": self.strength} if way is Decision.REFINE else {}
            self._teacher.check(self._ask(request, False, **over))

    def _ask(self, request: GenerationRequest, drafts: bool, **more: Any) -> GeneratorRequest:
        # Not by who is asked: one painter may be both, in fewer steps and in more.
        s = self.settings
        steps, guidance, rescale, solver = (
            (s.student_steps, s.student_guidance, s.student_guidance_rescale, s.student_solver)
            if drafts
            else (s.teacher_steps, s.teacher_guidance, s.teacher_guidance_rescale, s.teacher_solver)
        )
        words = {"prompt": request.prompt, "negative_prompt": request.negative_prompt, **extra_prompts(request)}
        asked: dict[str, Any] = {**words, "seed": request.seed % SEEDS, **more}
        how: dict[str, Any] = {"steps": steps, "guidance": guidance, "guidance_rescale": rescale, "solver": solver}
        return GeneratorRequest(**asked, **how, clip_skip=s.clip_skip, height=s.height, width=s.width)

    def act(self, stage: Stage, jobs: Sequence[Job]) -> None:
        """Take jobs that are in one stage a step further."""
        ACTIONS[stage](self, jobs)

    def start(self, jobs: Sequence[Job]) -> None:
        """Drafts begin, unless the policy wants the teacher at once."""
        for job in jobs:
            decision = route_one(self.policy, job, self._context([job]))
            job.decision, job.stage = decision, Stage.STUDENT if decision is None else Stage.TEACHER

    @staticmethod
    def _context(jobs: Sequence[Job]) -> Context:
        nothing = torch.zeros(0, 0)
        drafts = [j.draft for j in jobs if j.draft is not None]
        return Context([j.request.prompt for j in jobs], [nothing] * len(jobs), drafts, [j.attempts for j in jobs])

    def draft(self, jobs: Sequence[Job]) -> None:
        """The student paints."""
        requests: list[GeneratorRequest] = []
        for job in jobs:
            place = job.request.attempt + job.attempts
            seed = derived(job.request.seed, "initial", place) if place else job.request.seed % SEEDS
            requests.append(self._ask(job.request, True, seed=seed))
        for job, found in zip(jobs, self._painted(jobs, requests, self._student, "student"), strict=True):
            if isinstance(found, GeneratedImage):
                job.x, job.stage = found.image, Stage.SCORE
            elif job.draft is not None:
                # A later draft failed: the best so far goes on as it would have with the last attempt used.
                job.warning, job.image, job.stage = _said("student", found, "the draft before it"), job.draft, Stage.DONE
            else:
                job.error, job.stage = f"the student failed: {_words(found)}", Stage.DONE

    def _painted(
        self, jobs: Sequence[Job], requests: Sequence[GeneratorRequest], model: ImageGenerator, name: str
    ) -> list[GeneratedImage | Exception]:
        started = time.perf_counter()
        found = model.paint(requests, self.settings.batch_size)
        size = (3, self.settings.height, self.settings.width)
        for i, (job, one) in enumerate(zip(jobs, found, strict=True)):
            if isinstance(one, GeneratedImage) and tuple(one.image.shape) != size:
                shape = tuple(one.image.shape)
                found[i] = one = SettingError(f"it painted {shape}, not {size}: choose a size that it paints.")
            if isinstance(one, GeneratedImage):
                job.steps = (job.steps or 0) + one.steps
        charge(
            jobs, name, [f.evaluations if isinstance(f, GeneratedImage) else 0 for f in found], time.perf_counter() - started
        )
        return found

    @torch.inference_mode()
    def score(self, jobs: Sequence[Job]) -> None:
        """Score drafts, decide, and send them on."""
        started = time.perf_counter()
        drafts = torch.stack([j.x for j in jobs])
        for job, draft, score in zip(
            jobs, drafts, score_images(self.oracle, jobs, drafts, self.settings.batch_size), strict=True
        ):
            count_draft(job, draft, score)
        for job in jobs:
            decide_job(self.policy, job, self._context([job]))
        charge(jobs, "oracle", 1 if self.oracle is not None else 0, time.perf_counter() - started)
        stages = {Decision.ACCEPT: Stage.DONE, Decision.REDRAFT: Stage.STUDENT}
        for job in jobs:
            job.stage = stages.get(job.decision or Decision.ACCEPT, Stage.TEACHER)
            job.image = job.draft if job.stage is Stage.DONE else None

    def repaint(self, jobs: Sequence[Job]) -> None:
        """The teacher paints over drafts, or anew; a group of each."""
        for over in (True, False):
            some = [j for j in jobs if (j.decision is Decision.REFINE) is over]
            if some:
                self._repaint(some, over)

    def _repaint(self, jobs: Sequence[Job], over: bool) -> None:
        requests: list[GeneratorRequest] = []
        for job in jobs:
            seed = derived(job.request.seed, "rollback", 0)
            more = {"seed": seed, "image": job.draft, "strength": self.strength or 0.5} if over else {}
            requests.append(self._ask(job.request, False, **more))
        for job, found in zip(jobs, self._painted(jobs, requests, self._teacher, "teacher"), strict=True):
            if isinstance(found, GeneratedImage):
                rechecks = (job.policy or self.policy).rechecks
                again = rechecks and job.draft is not None and self.oracle is not None
                job.image, job.stage = found.image, Stage.RECHECK if again else Stage.DONE
            elif job.draft is not None:
                job.image, job.warning, job.stage = job.draft, _said("teacher", found, "the draft"), Stage.DONE
            else:
                job.error, job.stage = f"the teacher failed: {_words(found)}", Stage.DONE

    @torch.inference_mode()
    def recheck(self, jobs: Sequence[Job]) -> None:
        """Score what the teacher made, and keep the better of it and the draft."""
        started = time.perf_counter()
        recheck_jobs(self.oracle, self.policy, jobs, self.settings.batch_size)
        charge(jobs, "oracle", 1, time.perf_counter() - started)


def _words(e: Exception) -> str:
    return f"{type(e).__name__}: {e}"


def _said(who: str, e: Exception, fallback: str) -> str:
    return f"the {who} failed: {_words(e)}; {fallback} is kept"


ACTIONS: dict[Stage, Callable[[PixelCascade, Sequence[Job]], None]] = {
    Stage.NEW: PixelCascade.start,
    Stage.STUDENT: PixelCascade.draft,
    Stage.SCORE: PixelCascade.score,
    Stage.TEACHER: PixelCascade.repaint,
    Stage.RECHECK: PixelCascade.recheck,
}
"""What to call for jobs in a stage."""
