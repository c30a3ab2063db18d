"""The machine knows what a step is: it advances a batch of jobs that are in the same stage by one network call.

Who steps together is not its business (that is `run`'s, or a server's). Every network call has the same batch shape,
padded with copies of its first row, and every noise belongs to a sample's seed: a picture doesn't depend on its batch
mates, to the bit (eager float32, fixed threads).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from allaprima.cascade.given import (
    check_given,
    controls_of,
    first_latents,
    kept,
    pasted,
    pictures_of,
    student_plan,
    teacher_plan,
)
from allaprima.cascade.job import Job, Request, Stage
from allaprima.cascade.look import charge, check_oracle, count_draft, decide, look, pad, recheck, route_one
from allaprima.cascade.painter import Controlled, Drafts, Painter, Reads, RefinesOnly, Routed, Scorer, Sized
from allaprima.cascade.policy import Context, Decision, Policy
from allaprima.cascade.settings import MAX_STEPS, CascadeSettings
from allaprima.cascade.words import check_reading, check_words, conditions
from allaprima.core.errors import SettingError
from allaprima.core.seeds import noise_batch
from allaprima.core.types import Condition
from allaprima.diffusion.guidance import GuidanceInterval, GuidedDenoiser, scales_at
from allaprima.diffusion.rollback import rollback, start_time
from allaprima.diffusion.schedule import Schedule
from allaprima.diffusion.solvers import make_solver
from allaprima.diffusion.solvers.solver import Solver, Step, begun

OnStep = Callable[[Tensor, Tensor], Tensor]
"""What a caller does after a step: `(latents (B, C, h, w), times (B,)) -> latents`."""
EDITS = 64
"""Plans of edits that are kept, by strength: a server's callers choose those, as many as they like."""
STUDENT = "student"
"""The student's name for noises and costs."""


@dataclass(frozen=True)
class _Hand:
    """One painter's side of the machine: its denoiser, solver, plan and name for noises and costs."""

    name: str
    painter: Painter
    denoiser: GuidedDenoiser
    solver: Solver
    plan: Sequence[Step]
    guidance: float
    interval: GuidanceInterval | None
    rescale: float

    def scale(self, t: Tensor) -> Tensor:
        """Guidance scales `(B,)` at times `t: (B,)`."""
        return scales_at(t, self.guidance, self.interval)


class Machine:
    """Student, oracle, policy and teacher, one batch and one step at a time."""

    def __init__(
        self, student: Painter, teacher: Painter, oracle: Scorer | None, policy: Policy, settings: CascadeSettings
    ) -> None:
        self.settings, self.policy, self.oracle = settings, policy, oracle
        check_oracle(oracle, policy)
        if _controls(student) != _controls(teacher):
            raise SettingError(
                f"the student's ControlNets read pictures of {_controls(student)} channels, the teacher's of"
                f" {_controls(teacher)}: put such on both that read the same."
            )
        s = settings
        check_reading(student, teacher, s)
        self.shape = student.latent_shape(s.height, s.width)
        theirs = teacher.latent_shape(s.height, s.width)
        if tuple(theirs) != tuple(self.shape):
            raise SettingError(
                f"the student's latents of a {s.width}x{s.height} picture are {tuple(self.shape)}, the teacher's"
                f" {tuple(theirs)}: a draft can't be refined there. Choose two models of one autoencoder."
            )
        self._clock = time.perf_counter
        self.on_step: OnStep | None = None
        self._routed = student if isinstance(student, Routed) else None
        self._rough = student if isinstance(student, Drafts) and student.rough_drafts else None
        self._student = self._hand(STUDENT, student, s.student_solver, s.student_steps, s.student_guidance)
        start = start_time(self._schedule(teacher), s.sigma, s.teacher_steps)
        args = ("teacher", teacher, s.teacher_solver, s.teacher_steps, s.teacher_guidance, s.teacher_guidance_interval)
        self._refine = self._hand(*args, start, s.teacher_last_time)
        self._regenerate = self._hand(*args, None, s.teacher_last_time)
        self._edits: dict[tuple[str, float], _Hand] = {}

    @property
    def students(self) -> int:
        """How many students share the drafts: a batch holds those of one, so that many drafts are due to fill batches."""
        return 1 if self._routed is None else self._routed.students

    def _schedule(self, painter: Painter) -> Schedule:
        """A painter's, for the size of this run."""
        sized = isinstance(painter, Sized)
        return painter.schedule_at(self.settings.height, self.settings.width) if sized else painter.schedule

    def _hand(
        self, name: str, painter: Painter, solver: str, steps: int, guidance: float,
        interval: GuidanceInterval | None = None, start: float | None = None, last_time: float | None = None,
    ) -> _Hand:  # fmt: skip
        made = make_solver(solver, self._schedule(painter), **({} if last_time is None else {"last_time": last_time}))
        s = self.settings
        rescale = s.student_guidance_rescale if name == STUDENT else s.teacher_guidance_rescale
        return _Hand(name, painter, painter.denoiser, made, made.plan(steps, start), guidance, interval, rescale)

    def check(self, request: Request, policy: Policy | None = None) -> None:
        """Raise `PromptError` or `SettingError` for a request that can't be painted; `policy`: the one that it brings."""
        policy = policy or self.policy
        check_oracle(self.oracle, policy)
        painter = self._student.painter
        check_words(painter, request)
        always = getattr(policy, "decision", None)
        if Decision.REGENERATE in (
            (self.settings.strategy, getattr(policy, "otherwise", None)) if always is None else (always,)
        ):
            self._refuse_noise(request)
        check_given(request, isinstance(painter, Reads), _controls(painter), self.settings.height, self.settings.width)

    def _refuse_noise(self, request: Request) -> None:
        """Raise `SettingError` where the teacher is to paint from noise and can't."""
        from_noise = request.edit is None or request.edit.strength == 1
        if from_noise and isinstance(self._regenerate.painter, RefinesOnly) and self._regenerate.painter.refines_only:
            raise SettingError(
                "strategy='regenerate' with a refiner as the only teacher: it was trained on low noise and can't paint from"
                " pure noise. Say strategy='refine' (or mode='refine-all'), or give the card's teacher a base and a refiner."
            )

    def start(self, jobs: Sequence[Job]) -> None:
        """Encode prompts and draw the initial noise; drafts begin, unless the policy wants the teacher at once."""
        painter = self._student.painter
        begun = self._clock()
        s = self.settings
        cond, negative = conditions(painter, [j.request for j in jobs], s.batch_size, s.clip_skip)
        noises = noise_batch([j.request.seed for j in jobs], "initial", [0] * len(jobs), self.shape)
        firsts = noise_batch([j.request.seed for j in jobs], "initial", [j.request.attempt for j in jobs], self.shape)
        for i, job in enumerate(jobs):
            job.cond, job.negative = cond.rows([i]), negative.rows([i])
            job.noise = noises[i]
            if job.request.controls:
                given = controls_of(job.request, _controls(painter), self.settings.height, self.settings.width)
                job.cond = Condition({**job.cond.tensors, **given.tensors})
        self._read([j for j in jobs if j.request.edit is not None])
        if self._routed is not None:
            embeds = cond.tensors["prompt_embeds"][: len(jobs)]
            for job, route in zip(jobs, self._routed.route(embeds).tolist(), strict=True):
                job.route = route
        self._charge(jobs, "text", 0, begun)
        for job, first in zip(jobs, firsts, strict=True):
            decision = route_one(self.policy, job, self._context([job]))
            if decision is None:
                self._enter_from(job, Stage.STUDENT, first)
            else:
                job.decision = decision
                self._enter_teacher(job)

    @torch.inference_mode()
    def _read(self, jobs: Sequence[Job]) -> None:
        """Latents and masks of the pictures that are edited."""
        if not jobs:
            return
        painter, images = self._student.painter, list[Tensor]()
        assert isinstance(painter, Reads)
        for job in jobs:
            assert job.request.edit is not None
            image, job.mask = pictures_of(job.request.edit, self.settings.height, self.settings.width)
            images.append(image)
        latents = painter.encode_images(self._pad(torch.stack(images)))
        for job, source in zip(jobs, latents, strict=False):
            job.source = source.clone()

    @staticmethod
    def _context(jobs: Sequence[Job]) -> Context:
        return Context(
            [j.request.prompt for j in jobs],
            [j.prompt_embeds for j in jobs],
            [j.draft for j in jobs if j.draft is not None],
            [j.attempts for j in jobs],
        )

    def _enter(self, job: Job, stage: Stage, hand: _Hand, x: Tensor) -> None:
        job.stage, job.position, job.x = stage, 0, x
        job.state = {k: v[0] for k, v in hand.solver.init(x[None]).items()}

    def _enter_from(self, job: Job, stage: Stage, noise: Tensor) -> None:
        """Begin a draft, or a repainting, at noise or at the picture that is edited."""
        job.stage = stage
        hand = self._hand_of(job)
        t, edit = hand.plan[0].t, job.request.edit
        first = begun(hand.solver, noise, t) if edit is None or edit.strength == 1 else noise
        self._enter(job, stage, hand, first_latents(job, t, first, hand.painter.schedule))

    def _hand_of(self, job: Job) -> _Hand:
        if job.stage is Stage.STUDENT:
            return self._from(self._student, job)
        return self._refine if job.decision is Decision.REFINE else self._from(self._regenerate, job)

    def _from(self, hand: _Hand, job: Job) -> _Hand:
        """The hand, with an edit's plan if it is one."""
        edit = job.request.edit
        if edit is None or edit.strength == 1:
            return hand
        key = hand.name, edit.strength
        if key not in self._edits:
            student = hand.name == STUDENT
            plan = student_plan(edit, hand.solver, self.settings.student_steps) if student else teacher_plan(edit, hand.plan)
            if len(self._edits) >= EDITS:
                del self._edits[next(iter(self._edits))]
            self._edits[key] = dataclasses.replace(hand, plan=plan)
        return self._edits[key]

    @torch.inference_mode()
    def step(self, jobs: Sequence[Job]) -> None:
        """One network step for jobs that are painting with the same model (any positions, any decisions)."""
        begun = self._clock()
        hand = self._hand_of(jobs[0])
        steps = [self._hand_of(j).plan[j.position] for j in jobs]
        t = torch.tensor([p.t for p in steps], dtype=torch.float64)
        x_t = torch.stack([j.x for j in jobs])
        x0, evaluations = self._denoise(hand, jobs, x_t, t)
        s = torch.tensor([p.s for p in steps], dtype=torch.float64)
        noise = None
        if hand.solver.needs_noise:
            # A later draft has noises of its own: no plan is longer than MAX_STEPS.
            drafts = [j.request.attempt + j.attempts if hand.name == STUDENT else 0 for j in jobs]
            places = [j.position + MAX_STEPS * d for j, d in zip(jobs, drafts, strict=True)]
            noise = noise_batch([j.request.seed for j in jobs], hand.name, places, self.shape)
        state = {k: torch.stack([j.state[k] for j in jobs]) for k in jobs[0].state}
        phase = torch.tensor([p.phase for p in steps])
        back = torch.tensor([float("nan") if p.noise_to is None else p.noise_to for p in steps], dtype=torch.float64)
        x_s, state = hand.solver.step(x_t, x0, t, s, state, noise, phase, back)
        if self.on_step is not None:
            x_s = self.on_step(x_s, t)
        for i, job in enumerate(jobs):
            back_to = steps[i].noise_to
            now = steps[i].s if back_to is None else back_to
            job.x = kept(job, x_s[i], now, hand.painter.schedule).clone()
            job.state = {k: v[i].clone() for k, v in state.items()}
            job.position += 1
            if job.position == len(self._hand_of(job).plan):
                job.stage = Stage.SCORE if job.stage is Stage.STUDENT else Stage.DECODE
        self._charge(jobs, hand.name, evaluations, begun)

    def _denoise(self, hand: _Hand, jobs: Sequence[Job], x_t: Tensor, t: Tensor) -> tuple[Tensor, list[int]]:
        """Clean predictions and each job's network evaluations. Jobs at scale 1 need no guidance, and half the work.

        They go in a batch of their own, so that what a picture goes through never depends on its mates.
        """
        scale = hand.scale(t)
        negative = Condition.cat([j.negative for j in jobs]).tensors
        known = {
            **Condition.cat([j.cond for j in jobs]).tensors,
            **{f"negative_{k}": v for k, v in negative.items()},
            "guidance_scale": scale,
        }
        if hand.rescale:
            known["guidance_rescale"] = torch.full_like(scale, hand.rescale)
        if hand.name == STUDENT and self._routed is not None:
            known["route"] = torch.tensor([j.route for j in jobs])
        cond = Condition(known)
        x0 = torch.empty_like(x_t)
        for rows, denoise in (
            ((scale != 1).nonzero()[:, 0], hand.denoiser),
            ((scale == 1).nonzero()[:, 0], hand.denoiser.unguided),
        ):
            if len(rows):
                here = Condition({k: self._pad(v) for k, v in cond.rows(rows).tensors.items()})
                x0[rows] = denoise(self._pad(x_t[rows]), self._pad(t[rows]), here)[: len(rows)]
        return x0, [1 if w == 1 else hand.denoiser.evaluations_per_call for w in scale.tolist()]

    @torch.inference_mode()
    def score(self, jobs: Sequence[Job]) -> None:
        """Decode drafts, score them, decide, and send them on."""
        begun = self._clock()
        drafts = self._decode(self._student.painter.decode if self._rough is None else self._rough.decode_draft, jobs)
        self._charge(jobs, "decode", 0, begun)
        begun = self._clock()
        scores = look(self.oracle, jobs, drafts, self.settings.batch_size)
        for job, draft, score in zip(jobs, drafts, scores, strict=True):
            count_draft(job, draft, score)
        for job in jobs:
            decide(self.policy, job, self._context([job]))
        self._charge(jobs, "oracle", 1 if self.oracle is not None else 0, begun)
        for job in jobs:
            decision = job.decision
            if decision is Decision.ACCEPT and self._rough is not None:
                job.x, job.stage = job.best_x, Stage.DECODE
            elif decision is Decision.ACCEPT:
                job.image, job.stage = job.draft, Stage.DONE
            elif decision is Decision.REDRAFT:
                place = job.request.attempt + job.attempts
                (noise,) = noise_batch([job.request.seed], "initial", [place], self.shape)
                self._enter_from(job, Stage.STUDENT, noise)
            else:
                self._enter_teacher(job)

    def _enter_teacher(self, job: Job) -> None:
        if job.decision is Decision.REFINE:
            eps = noise_batch([job.request.seed], "rollback", [0], self.shape)
            t = torch.tensor([self._refine.plan[0].t], dtype=torch.float64)
            x = rollback(job.best_x[None], eps, t, self._refine.painter.schedule)[0]
            self._enter(job, Stage.TEACHER, self._refine, x)
        else:
            self._refuse_noise(job.request)
            # The paper's regeneration: same prompt and the same initial noise as the (first) draft, so that a repainted
            # picture is what the teacher alone paints with this seed.
            self._enter_from(job, Stage.TEACHER, job.noise)

    @torch.inference_mode()
    def decode(self, jobs: Sequence[Job]) -> None:
        """Turn the teacher's latents into pictures, and those of drafts that were accepted by rough ones."""
        begun = self._clock()
        for hand in (self._student, self._refine):
            mine = [j for j in jobs if (j.decision is Decision.ACCEPT) == (hand is self._student)]
            for job, image in zip(mine, self._decode(hand.painter.decode, mine) if mine else (), strict=True):
                rechecks = (job.policy or self.policy).rechecks
                again = rechecks and job.draft is not None and self.oracle is not None and hand is self._refine
                job.image, job.stage = image.clone(), Stage.RECHECK if again else Stage.DONE
        self._charge(jobs, "decode", 0, begun)

    @torch.inference_mode()
    def recheck(self, jobs: Sequence[Job]) -> None:
        """Score what the teacher made, and keep the better of it and the draft."""
        begun = self._clock()
        recheck(self.oracle, self.policy, jobs, self.settings.batch_size)
        for job in jobs:
            if self._rough is not None and job.kept == "draft":
                job.x = job.best_x
                (job.image,) = self._decode(self._student.painter.decode, [job])
        self._charge(jobs, "oracle", 1, begun)

    def _decode(self, decode: Callable[[Tensor], Tensor], jobs: Sequence[Job]) -> Tensor:
        images = decode(self._pad(torch.stack([j.x for j in jobs])))[: len(jobs)]
        if all(j.mask is None for j in jobs):
            return images
        return torch.stack([pasted(job, image) for job, image in zip(jobs, images, strict=True)])

    def _pad(self, x: Tensor) -> Tensor:
        return pad(x, self.settings.batch_size)

    def _charge(self, jobs: Sequence[Job], name: str, evaluations: int | Sequence[int], begun: float) -> None:
        charge(jobs, name, evaluations, self._clock() - begun)

    def act(self, stage: Stage, jobs: Sequence[Job]) -> None:
        """Take jobs that are in one stage a step further."""
        ACTIONS[stage](self, jobs)


def _controls(painter: Painter) -> tuple[int, ...]:
    return painter.controls if isinstance(painter, Controlled) else ()


ACTIONS: dict[Stage, Callable[[Machine, Sequence[Job]], None]] = {
    Stage.NEW: Machine.start,
    Stage.STUDENT: Machine.step,
    Stage.SCORE: Machine.score,
    Stage.TEACHER: Machine.step,
    Stage.DECODE: Machine.decode,
    Stage.RECHECK: Machine.recheck,
}
"""What to call for jobs in a stage."""
