"""The latent cascade: student and teacher are sampled step by step, a batch of jobs by one network call at a time.

Every network call has the same batch shape, padded with copies of its first row, and every noise belongs to a sample's
seed: an image doesn't depend on its batch mates, to the bit (eager float32, fixed threads).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from allaprima.cascade.base import STUDENT, TEACHER, BaseCascade
from allaprima.cascade.image_conditioning import (
    check_image_inputs,
    control_condition,
    edit_tensors,
    first_latents,
    keep_outside_mask,
    paste_outside_mask,
    student_steps,
    teacher_steps,
)
from allaprima.cascade.job import Job, Stage
from allaprima.cascade.policy import Decision, Policy
from allaprima.cascade.prompt_encoding import check_prompt_settings, check_prompts, encode_conditions
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.scoring import ImageScorer, pad_rows
from allaprima.cascade.settings import MAX_STEPS, CascadeSettings
from allaprima.core.errors import SettingError
from allaprima.core.seeds import noise_batch
from allaprima.core.types import Condition
from allaprima.diffusion.guidance import GuidanceInterval, GuidedDenoiser, scales_at
from allaprima.diffusion.noising import add_noise, start_time
from allaprima.diffusion.schedules import Schedule
from allaprima.diffusion.solvers import make_solver
from allaprima.diffusion.solvers.solver import Solver, Step, scale_initial_noise
from allaprima.models.diffusion_model import DiffusionModel

OnStep = Callable[[Tensor, Tensor], Tensor]
"""What a caller does after a step: `(latents (B, C, h, w), times (B,)) -> latents`."""
PLAN_CACHE_SIZE = 64
"""Plans of edits that are kept, by strength: a server's callers choose those, as many as they like."""


@dataclass(frozen=True)
class SamplerConfig:
    """How one model is sampled: its denoiser, solver, timesteps, guidance, and its name for noises and costs."""

    name: str
    model: DiffusionModel
    denoiser: GuidedDenoiser
    solver: Solver
    timesteps: Sequence[Step]
    guidance: float
    interval: GuidanceInterval | None
    rescale: float

    def scale(self, t: Tensor) -> Tensor:
        """Guidance scales `(B,)` at times `t: (B,)`."""
        return scales_at(t, self.guidance, self.interval)


class LatentCascade(BaseCascade):
    """Student, oracle, policy and teacher, one batch and one network step at a time."""

    def __init__(
        self,
        student: DiffusionModel,
        teacher: DiffusionModel,
        oracle: ImageScorer | None,
        policy: Policy,
        settings: CascadeSettings,
    ) -> None:
        super().__init__(oracle, policy, settings)
        self._check_policy(policy)
        if student.controls != teacher.controls:
            raise SettingError(
                f"the student's ControlNets read pictures of {student.controls} channels, the teacher's of"
                f" {teacher.controls}: put such on both that read the same."
            )
        s = settings
        check_prompt_settings(student, teacher, s)
        self.shape = student.latent_shape(s.height, s.width)
        theirs = teacher.latent_shape(s.height, s.width)
        if tuple(theirs) != tuple(self.shape):
            raise SettingError(
                f"the student's latents of a {s.width}x{s.height} picture are {tuple(self.shape)}, the teacher's"
                f" {tuple(theirs)}: a draft can't be refined there. Choose two models of one autoencoder."
            )
        self.on_step: OnStep | None = None
        self._preview = student.preview_decoder
        self._student = self._config(STUDENT, student, s.student_solver, s.student_steps, s.student_guidance)
        start = start_time(self._schedule(teacher), s.sigma, s.teacher_steps)
        args = (TEACHER, teacher, s.teacher_solver, s.teacher_steps, s.teacher_guidance, s.teacher_guidance_interval)
        self._refine = self._config(*args, start, s.teacher_last_time)
        self._regenerate = self._config(*args, None, s.teacher_last_time)
        self._edits: dict[tuple[str, float], SamplerConfig] = {}

    @property
    def students(self) -> int:
        """How many students share the drafts."""
        return self._student.model.students

    def _schedule(self, model: DiffusionModel) -> Schedule:
        """Return a painter's, for the size of this run."""
        return model.schedule_at(self.settings.height, self.settings.width)

    def _config(
        self, name: str, model: DiffusionModel, solver: str, steps: int, guidance: float,
        interval: GuidanceInterval | None = None, start: float | None = None, last_time: float | None = None,
    ) -> SamplerConfig:  # fmt: skip
        made = make_solver(solver, self._schedule(model), **({} if last_time is None else {"last_time": last_time}))
        s = self.settings
        rescale = s.student_guidance_rescale if name == STUDENT else s.teacher_guidance_rescale
        return SamplerConfig(name, model, model.denoiser, made, made.timesteps(steps, start), guidance, interval, rescale)

    def _check_request(self, request: GenerationRequest, actions: frozenset[Decision]) -> None:
        model = self._student.model
        check_prompts(model, request)
        if Decision.REGENERATE in actions:
            self._refuse_noise(request)
        check_image_inputs(request, model.reads_images, model.controls, self.settings.height, self.settings.width)

    def _refuse_noise(self, request: GenerationRequest) -> None:
        """Raise `SettingError` where the teacher is to paint from noise and can't."""
        from_noise = request.edit is None or request.edit.strength == 1
        if from_noise and self._regenerate.model.refines_only:
            raise SettingError(
                "strategy='regenerate' with a refiner as the only teacher: it was trained on low noise and can't paint from"
                " pure noise. Say strategy='refine' (or mode='refine-all'), or give the card's teacher a base and a refiner."
            )

    def _encode(self, jobs: Sequence[Job]) -> None:
        """Encode prompts and images, draw the initial noise, and choose among several students."""
        model, s = self._student.model, self.settings
        started = self._clock()
        cond, negative = encode_conditions(model, [j.request for j in jobs], s.batch_size, s.clip_skip)
        noises = noise_batch([j.request.seed for j in jobs], "initial", [0] * len(jobs), self.shape)
        for i, job in enumerate(jobs):
            job.cond, job.negative = cond.rows([i]), negative.rows([i])
            job.noise = noises[i]
            if job.request.controls:
                control = control_condition(job.request, model.controls, s.height, s.width)
                job.cond = Condition({**job.cond.tensors, **control.tensors})
        self._encode_images([j for j in jobs if j.request.edit is not None])
        if self.students > 1:
            routes = model.route(cond.tensors["prompt_embeds"][: len(jobs)])
            for job, route in zip(jobs, routes.tolist(), strict=True):
                job.student_index = route
        self._charge(jobs, "text", 0, started)

    @torch.inference_mode()
    def _encode_images(self, jobs: Sequence[Job]) -> None:
        """Encode the images that are edited, with their masks."""
        if not jobs:
            return
        model, images = self._student.model, list[Tensor]()
        for job in jobs:
            assert job.request.edit is not None
            image, job.mask = edit_tensors(job.request.edit, self.settings.height, self.settings.width)
            images.append(image)
        latents = model.encode_images(self._pad(torch.stack(images)))
        for job, source in zip(jobs, latents, strict=False):
            job.source = source.clone()

    def _enter_student(self, job: Job) -> None:
        (noise,) = noise_batch([job.request.seed], "initial", [job.request.attempt + job.attempts], self.shape)
        self._enter_from(job, Stage.STUDENT, noise)

    def _enter(self, job: Job, stage: Stage, config: SamplerConfig, x: Tensor) -> None:
        job.stage, job.step_index, job.x = stage, 0, x
        job.state = {k: v[0] for k, v in config.solver.init(x[None]).items()}

    def _enter_from(self, job: Job, stage: Stage, noise: Tensor) -> None:
        """Begin a draft, or a repainting, at noise or at the picture that is edited."""
        job.stage = stage
        config = self._config_of(job)
        t, edit = config.timesteps[0].t, job.request.edit
        first = scale_initial_noise(config.solver, noise, t) if edit is None or edit.strength == 1 else noise
        self._enter(job, stage, config, first_latents(job, t, first, config.model.schedule))

    def _config_of(self, job: Job) -> SamplerConfig:
        if job.stage is Stage.STUDENT:
            return self._from(self._student, job)
        return self._refine if job.decision is Decision.REFINE else self._from(self._regenerate, job)

    def _from(self, config: SamplerConfig, job: Job) -> SamplerConfig:
        """Return the configuration, with the timesteps of an edit if the job is one."""
        edit = job.request.edit
        if edit is None or edit.strength == 1:
            return config
        key = config.name, edit.strength
        if key not in self._edits:
            timesteps = (
                student_steps(edit, config.solver, self.settings.student_steps)
                if config.name == STUDENT
                else teacher_steps(edit, config.timesteps)
            )
            if len(self._edits) >= PLAN_CACHE_SIZE:
                del self._edits[next(iter(self._edits))]
            self._edits[key] = dataclasses.replace(config, timesteps=timesteps)
        return self._edits[key]

    @torch.inference_mode()
    def step(self, jobs: Sequence[Job]) -> None:
        """One network step for jobs that are painting with the same model (any positions, any decisions)."""
        started = self._clock()
        config = self._config_of(jobs[0])
        steps = [self._config_of(j).timesteps[j.step_index] for j in jobs]
        t = torch.tensor([p.t for p in steps], dtype=torch.float64)
        x_t = torch.stack([j.x for j in jobs])
        x0, evaluations = self._denoise(config, jobs, x_t, t)
        s = torch.tensor([p.s for p in steps], dtype=torch.float64)
        noise = None
        if config.solver.needs_noise:
            # A later attempt has noises of its own: no plan is longer than MAX_STEPS.
            attempts = [j.request.attempt + j.attempts if config.name == STUDENT else j.tries for j in jobs]
            places = [j.step_index + MAX_STEPS * k for j, k in zip(jobs, attempts, strict=True)]
            noise = noise_batch([j.request.seed for j in jobs], config.name, places, self.shape)
        state = {k: torch.stack([j.state[k] for j in jobs]) for k in jobs[0].state}
        phase = torch.tensor([p.phase for p in steps])
        back = torch.tensor([float("nan") if p.noise_to is None else p.noise_to for p in steps], dtype=torch.float64)
        x_s, state = config.solver.step(x_t, x0, t, s, state, noise, phase, back)
        if self.on_step is not None:
            x_s = self.on_step(x_s, t)
        for i, job in enumerate(jobs):
            back_to = steps[i].noise_to
            now = steps[i].s if back_to is None else back_to
            job.x = keep_outside_mask(job, x_s[i], now, config.model.schedule).clone()
            job.state = {k: v[i].clone() for k, v in state.items()}
            job.step_index += 1
            if job.step_index == len(self._config_of(job).timesteps):
                job.stage = Stage.SCORE if job.stage is Stage.STUDENT else Stage.DECODE
            elif self._is_previewed(job):
                job.x0, job.stage = x0[i].clone(), Stage.PREVIEW
        self._charge(jobs, config.name, evaluations, started)

    def _is_previewed(self, job: Job) -> bool:
        """Whether the oracle looks at the clean prediction of the step that was taken."""
        policy, teacher = job.policy or self.policy, job.stage is Stage.TEACHER
        attempts = job.tries if teacher else job.attempts
        return policy.scores_previews and policy.early_threshold(teacher, job.step_index, attempts) is not None

    def _previews(self, jobs: Sequence[Job]) -> Tensor:
        started = self._clock()
        images = self._decode(self._student.model.decode_preview, jobs, [j.x0 for j in jobs])
        self._charge(jobs, "decode", 0, started)
        return images

    def _denoise(self, config: SamplerConfig, jobs: Sequence[Job], x_t: Tensor, t: Tensor) -> tuple[Tensor, list[int]]:
        """Clean predictions and each job's network evaluations. Jobs at scale 1 need no guidance, and half the work.

        They go in a batch of their own, so that what a picture goes through never depends on its mates.
        """
        scale = config.scale(t)
        negative = Condition.cat([j.negative for j in jobs]).tensors
        known = {
            **Condition.cat([j.cond for j in jobs]).tensors,
            **{f"negative_{k}": v for k, v in negative.items()},
            "guidance_scale": scale,
        }
        if config.rescale:
            known["guidance_rescale"] = torch.full_like(scale, config.rescale)
        if config.name == STUDENT and self.students > 1:
            known["route"] = torch.tensor([j.student_index for j in jobs])
        cond = Condition(known)
        x0 = torch.empty_like(x_t)
        for rows, denoise in (
            ((scale != 1).nonzero()[:, 0], config.denoiser),
            ((scale == 1).nonzero()[:, 0], config.denoiser.unguided),
        ):
            if len(rows):
                here = Condition({k: self._pad(v) for k, v in cond.rows(rows).tensors.items()})
                x0[rows] = denoise(self._pad(x_t[rows]), self._pad(t[rows]), here)[: len(rows)]
        return x0, [1 if w == 1 else config.denoiser.evaluations_per_call for w in scale.tolist()]

    def _enter_teacher(self, job: Job) -> None:
        if job.decision is Decision.REFINE:
            eps = noise_batch([job.request.seed], "rollback", [job.tries], self.shape)
            t = torch.tensor([self._refine.timesteps[0].t], dtype=torch.float64)
            x = add_noise(job.best_x[None], eps, t, self._refine.model.schedule)[0]
            self._enter(job, Stage.TEACHER, self._refine, x)
        else:
            self._refuse_noise(job.request)
            # The paper's regeneration: same prompt and the same initial noise as the (first) draft, so that a regenerated
            # image is what the teacher alone makes with this seed.
            noise, noise_index = job.noise, (job.policy or self.policy).teacher_noise(job.tries)
            if noise_index:
                (noise,) = noise_batch([job.request.seed], "regenerate", [noise_index], self.shape)
            self._enter_from(job, Stage.TEACHER, noise)

    def _drafts(self, jobs: Sequence[Job]) -> Tensor:
        started = self._clock()
        drafts = self._decode(self._student.model.decode_preview, jobs)
        self._charge(jobs, "decode", 0, started)
        return drafts

    def _accept(self, job: Job) -> None:
        if self._preview:
            job.x, job.stage = job.best_x, Stage.DECODE
        else:
            super()._accept(job)

    def _final_draft(self, job: Job) -> Tensor | None:
        if not self._preview:
            return job.draft
        job.x = job.best_x
        (image,) = self._decode(self._student.model.decode, [job])
        return image

    @torch.inference_mode()
    def decode(self, jobs: Sequence[Job]) -> None:
        """Decode the teacher's latents, and those of accepted drafts that were scored by previews."""
        started = self._clock()
        accepted = [j for j in jobs if j.decision is Decision.ACCEPT]
        others = [j for j in jobs if j.decision is not Decision.ACCEPT]
        for config, group in ((self._student, accepted), (self._refine, others)):
            if group:
                for job, image in zip(group, self._decode(config.model.decode, group), strict=True):
                    self._finish(job, image.clone())
        self._charge(jobs, "decode", 0, started)

    def _decode(
        self, decode: Callable[[Tensor], Tensor], jobs: Sequence[Job], latents: Sequence[Tensor] | None = None
    ) -> Tensor:
        x = torch.stack([j.x for j in jobs] if latents is None else list(latents))
        images = decode(self._pad(x))[: len(jobs)]
        if all(j.mask is None for j in jobs):
            return images
        return torch.stack([paste_outside_mask(job, image) for job, image in zip(jobs, images, strict=True)])

    def _pad(self, x: Tensor) -> Tensor:
        return pad_rows(x, self.settings.batch_size)
