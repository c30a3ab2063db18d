"""The pixel cascade: the same stages, policies, costs and results for models that are called whole, image by image.

For models of families that aren't known, and for servers: the student is asked for a picture, the oracle looks, and the
teacher paints over it (image to image at a strength) or paints anew. Step-level batching doesn't apply; painters get up to
`batch_size` asks at once. Seeds: the student paints with a generator of the request's seed, so a draft is what the pipeline
paints with `generator=torch.Generator().manual_seed(seed)`, and so is what the teacher paints anew; it paints over a draft
with `derived(seed, "rollback", 0)`, for a draft's own noise on top of it is no noise; later drafts have `derived(seed,
"initial", k)`.

A picture that fails costs itself only: without a draft it is an error, with one the draft is kept and a warning says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from allaprima.cascade.base import STUDENT, TEACHER, BaseCascade
from allaprima.cascade.job import Job, Stage
from allaprima.cascade.policy import Decision, Policy
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.scoring import ImageScorer
from allaprima.cascade.settings import CascadeSettings
from allaprima.conditioning.prompt_inputs import extra_prompts
from allaprima.core.errors import SettingError
from allaprima.core.seeds import derive
from allaprima.diffusion.noising import Strength
from allaprima.models.external.image_generator import GeneratedImage, GeneratorRequest, ImageGenerator

SEEDS = 2**31
"""Seeds of asks are below this: some servers take no larger ones."""


def derived(seed: int, purpose: str, step: int) -> int:
    """Return the seed of a further picture of a request."""
    return derive(seed, purpose, step) % SEEDS


class PixelCascade(BaseCascade):
    """Student, oracle, policy and teacher, a batch of whole images at a time."""

    def __init__(
        self,
        student: ImageGenerator,
        teacher: ImageGenerator,
        oracle: ImageScorer | None,
        policy: Policy,
        settings: CascadeSettings,
    ) -> None:
        super().__init__(oracle, policy, settings)
        self._student, self._teacher = student, teacher
        self.strength = settings.sigma.value if isinstance(settings.sigma, Strength) else None
        self._check_policy(policy)

    def _check_policy(self, policy: Policy) -> None:
        """Raise `SettingError` for a policy that these models can't follow."""
        super()._check_policy(policy)
        if policy.uses_embeddings:
            raise SettingError(
                f"{type(policy).__name__} reads prompts' hidden states, which models that are called whole don't show."
            )
        if policy.scores_previews:
            raise SettingError(
                "early stops need models that are sampled step by step here, these are called whole: leave the stops out."
            )
        refines = Decision.REFINE in policy.actions(Decision(self.settings.strategy))
        if refines and not self._teacher.paints_over:
            raise SettingError("this teacher can't paint over a picture: choose strategy='regenerate'.")
        if refines and self.strength is None:
            raise SettingError(
                f"sigma={self.settings.sigma!r}: how much of a draft is painted over is a share of the schedule here,"
                " Strength(0.5) or --sigma 0.5 --sigma-is strength, for the schedule itself isn't known."
            )

    def _check_request(self, request: GenerationRequest, actions: frozenset[Decision]) -> None:
        if request.edit is not None or request.controls:
            raise SettingError("pictures to edit or to be led by need models of a known family: ask for text alone.")
        self._student.check(self._request(request, True))
        for decision in sorted(actions & {Decision.REFINE, Decision.REGENERATE}):
            # As it will be asked: some can only paint over a picture.
            blank = torch.zeros(3, self.settings.height, self.settings.width)
            over = {"image": blank, "strength": self.strength} if decision is Decision.REFINE else {}
            self._teacher.check(self._request(request, False, **over))

    def _request(self, request: GenerationRequest, drafts: bool, **more: Any) -> GeneratorRequest:
        # Not by who is asked: one model may be both, in fewer steps and in more.
        s = self.settings
        steps, guidance, rescale, solver = (
            (s.student_steps, s.student_guidance, s.student_guidance_rescale, s.student_solver)
            if drafts
            else (s.teacher_steps, s.teacher_guidance, s.teacher_guidance_rescale, s.teacher_solver)
        )
        texts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt, **extra_prompts(request)}
        inputs: dict[str, Any] = {**texts, "seed": request.seed % SEEDS, **more}
        sampling: dict[str, Any] = {"steps": steps, "guidance": guidance, "guidance_rescale": rescale, "solver": solver}
        return GeneratorRequest(**inputs, **sampling, clip_skip=s.clip_skip, height=s.height, width=s.width)

    def _encode(self, jobs: Sequence[Job]) -> None:
        """Do nothing: the models encode prompts themselves."""

    def _enter_student(self, job: Job) -> None:
        job.stage = Stage.STUDENT

    def _enter_teacher(self, job: Job) -> None:
        job.stage = Stage.TEACHER

    def _drafts(self, jobs: Sequence[Job]) -> Tensor:
        return torch.stack([j.x for j in jobs])

    def step(self, jobs: Sequence[Job]) -> None:
        """Let the student generate drafts, or the teacher generate over drafts and anew: one call of each kind."""
        for over in (True, False):
            group = [j for j in jobs if (j.decision is Decision.REFINE) is over]
            if group:
                self._generate(group)

    def _generate(self, jobs: Sequence[Job]) -> None:
        drafts = jobs[0].stage is Stage.STUDENT
        model, name, kept = (
            (self._student, STUDENT, "the draft before it") if drafts else (self._teacher, TEACHER, "the draft")
        )
        size = (3, self.settings.height, self.settings.width)
        started = self._clock()
        images = model.paint(
            [self._draft_request(j) if drafts else self._teacher_request(j) for j in jobs], self.settings.batch_size
        )
        evaluations: list[float] = []
        for job, image in zip(jobs, images, strict=True):
            if isinstance(image, GeneratedImage) and tuple(image.image.shape) != size:
                image = SettingError(f"it painted {tuple(image.image.shape)}, not {size}: choose a size that it paints.")
            if isinstance(image, GeneratedImage):
                evaluations.append(image.evaluations)
                job.steps = (job.steps or 0) + image.steps
                if drafts:
                    job.x, job.stage = image.image, Stage.SCORE
                else:
                    self._finish(job, image.image)
                continue
            evaluations.append(0)
            failure = f"the {name} failed: {type(image).__name__}: {image}"
            job.stage = Stage.DONE
            if job.draft is None:
                job.error = failure
            else:
                job.image, job.warning = job.draft, f"{failure}; {kept} is kept"
        self._charge(jobs, name, evaluations, started)

    def _draft_request(self, job: Job) -> GeneratorRequest:
        draft = job.request.attempt + job.attempts
        return self._request(job.request, True, **({"seed": derived(job.request.seed, "initial", draft)} if draft else {}))

    def _teacher_request(self, job: Job) -> GeneratorRequest:
        if job.decision is not Decision.REFINE:
            noise_index = (job.policy or self.policy).teacher_noise(job.tries)
            seed = {"seed": derived(job.request.seed, "regenerate", noise_index)} if noise_index else {}
            return self._request(job.request, False, **seed)
        seed = derived(job.request.seed, "rollback", job.tries)
        return self._request(job.request, False, seed=seed, image=job.draft, strength=self.strength or 0.5)
