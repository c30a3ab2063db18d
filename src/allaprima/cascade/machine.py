"""The machine knows what a step is: it advances a batch of jobs that are in the same stage by one network call.

Who steps together is not its business (that is `run`'s, or a server's). Every network call has the same batch shape,
padded with copies of its first row, and every noise belongs to a sample's seed: a picture doesn't depend on its batch
mates, to the bit (eager float32, fixed threads).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from allaprima.cascade.job import Job, Request, Stage
from allaprima.cascade.policy import Decision, Policy
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import SettingError
from allaprima.core.seeds import noise_batch
from allaprima.core.types import Condition
from allaprima.diffusion.guidance import ClassifierFreeGuidance
from allaprima.diffusion.rollback import rollback, start_time
from allaprima.diffusion.schedule import Schedule
from allaprima.diffusion.solvers import make_solver
from allaprima.diffusion.solvers.solver import Solver, Step


class Painter(Protocol):
    """What the machine asks of a student or teacher model."""

    @property
    def denoiser(self) -> ClassifierFreeGuidance:
        """Guided denoiser."""
        ...

    @property
    def schedule(self) -> Schedule:
        """Noise schedule."""
        ...

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of one latent."""
        ...

    def check_prompt(self, prompt: str) -> None:
        """Raise `PromptError` for a prompt that can't be painted."""
        ...

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """`(B, L, D)`."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """`(B, 3, H, W)` in [0, 1]."""
        ...


class Scorer(Protocol):
    """What the machine asks of an oracle."""

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """`(B,)`, higher is better."""
        ...


@dataclass(frozen=True)
class _Hand:
    """One painter's side of the machine: its denoiser, solver, plan and name for noises and costs."""

    name: str
    painter: Painter
    denoiser: ClassifierFreeGuidance
    solver: Solver
    plan: Sequence[Step]
    guidance: float


class Machine:
    """Student, oracle, policy and teacher, one batch and one step at a time."""

    def __init__(
        self, student: Painter, teacher: Painter, oracle: Scorer | None, policy: Policy, settings: CascadeSettings
    ) -> None:
        self.settings, self.policy, self.oracle = settings, policy, oracle
        if oracle is None and policy.threshold is not None:
            raise SettingError("a threshold needs an oracle: give one, or use student only, teacher only or refine all.")
        s = settings
        self.shape = student.latent_shape(s.height, s.width)
        self._clock = time.perf_counter
        self._student = self._hand("student", student, s.student_solver, s.student_steps, s.student_guidance)
        start = start_time(teacher.schedule, s.sigma)
        args = ("teacher", teacher, s.teacher_solver, s.teacher_steps, s.teacher_guidance)
        self._refine = self._hand(*args, start, s.teacher_last_time)
        self._regenerate = self._hand(*args, None, s.teacher_last_time)

    @staticmethod
    def _hand(
        name: str, painter: Painter, solver: str, steps: int, guidance: float,
        start: float | None = None, last_time: float | None = None,
    ) -> _Hand:  # fmt: skip
        made = make_solver(solver, painter.schedule, **({} if last_time is None else {"last_time": last_time}))
        return _Hand(name, painter, painter.denoiser, made, made.plan(steps, start), guidance)

    def check(self, request: Request) -> None:
        """Raise `PromptError` for a request that can't be painted."""
        self._student.painter.check_prompt(request.prompt)
        if request.negative_prompt:
            self._student.painter.check_prompt(request.negative_prompt)

    def start(self, jobs: Sequence[Job]) -> None:
        """Encode prompts and draw the initial noise; drafts begin, unless the policy wants the teacher at once."""
        painter = self._student.painter
        begun = self._clock()
        texts = self._padded([j.request.prompt for j in jobs])
        negatives = self._padded([j.request.negative_prompt for j in jobs])
        embeds, negative_embeds = painter.encode(texts), painter.encode(negatives)
        noises = noise_batch([j.request.seed for j in jobs], "initial", [0] * len(jobs), self.shape)
        teacher_only = self._teacher_only()
        for i, job in enumerate(jobs):
            job.prompt_embeds, job.negative_prompt_embeds = embeds[i].clone(), negative_embeds[i].clone()
            job.noise = noises[i]
            if teacher_only:
                job.decision = Decision.REGENERATE
                self._enter_teacher(job)
            else:
                self._enter(job, Stage.STUDENT, self._student, job.noise)
        self._charge(jobs, "text", 0, begun)

    def _teacher_only(self) -> bool:
        return self.policy.threshold is None and self.policy.decide([0.0]) == [Decision.REGENERATE]

    def _enter(self, job: Job, stage: Stage, hand: _Hand, x: Tensor) -> None:
        job.stage, job.position, job.x = stage, 0, x
        job.state = {k: v[0] for k, v in hand.solver.init(x[None]).items()}

    def _hand_of(self, job: Job) -> _Hand:
        if job.stage is Stage.STUDENT:
            return self._student
        return self._refine if job.decision is Decision.REFINE else self._regenerate

    @torch.inference_mode()
    def step(self, jobs: Sequence[Job]) -> None:
        """One network step for jobs that are painting with the same model (any positions, any decisions)."""
        begun = self._clock()
        hand = self._hand_of(jobs[0])
        steps = [self._hand_of(j).plan[j.position] for j in jobs]
        t = torch.tensor([p.t for p in steps], dtype=torch.float64)
        x_t = torch.stack([j.x for j in jobs])
        x0 = self._denoise(hand, jobs, x_t, t)
        s = torch.tensor([p.s for p in steps], dtype=torch.float64)
        noise = None
        if hand.solver.needs_noise:
            noise = noise_batch([j.request.seed for j in jobs], hand.name, [j.position for j in jobs], self.shape)
        state = {k: torch.stack([j.state[k] for j in jobs]) for k in jobs[0].state}
        phase = torch.tensor([p.phase for p in steps])
        back = torch.tensor([float("nan") if p.noise_to is None else p.noise_to for p in steps], dtype=torch.float64)
        x_s, state = hand.solver.step(x_t, x0, t, s, state, noise, phase, back)
        for i, job in enumerate(jobs):
            job.x, job.state = x_s[i].clone(), {k: v[i].clone() for k, v in state.items()}
            job.position += 1
            if job.position == len(self._hand_of(job).plan):
                job.stage = Stage.SCORE if job.stage is Stage.STUDENT else Stage.DECODE
        self._charge(jobs, hand.name, hand.denoiser.evaluations_per_call, begun)

    def _denoise(self, hand: _Hand, jobs: Sequence[Job], x_t: Tensor, t: Tensor) -> Tensor:
        n = len(jobs)
        cond = Condition(
            {
                "prompt_embeds": self._pad(torch.stack([j.prompt_embeds for j in jobs])),
                "negative_prompt_embeds": self._pad(torch.stack([j.negative_prompt_embeds for j in jobs])),
                "guidance_scale": torch.full((self.settings.batch_size,), float(hand.guidance)),
            }
        )
        return hand.denoiser(self._pad(x_t), self._pad(t), cond)[:n]

    @torch.inference_mode()
    def score(self, jobs: Sequence[Job]) -> None:
        """Decode drafts, score them, decide, and send them on."""
        begun = self._clock()
        drafts = self._decode(self._student.painter, jobs)
        self._charge(jobs, "decode", 0, begun)
        begun = self._clock()
        scores: list[float] = [0.0] * len(jobs)
        if self.oracle is not None:
            padded = self.oracle.score(self._pad(drafts), self._padded([j.request.prompt for j in jobs]))
            scores = [float(v) for v in padded[: len(jobs)]]
        decisions = self.policy.decide(scores)
        self._charge(jobs, "oracle", 1 if self.oracle is not None else 0, begun)
        for i, (job, decision) in enumerate(zip(jobs, decisions, strict=True)):
            job.draft, job.decision = drafts[i].clone(), decision
            job.score = scores[i] if self.oracle is not None else None
            if decision is Decision.ACCEPT:
                job.image, job.stage = job.draft, Stage.DONE
            else:
                self._enter_teacher(job)

    def _enter_teacher(self, job: Job) -> None:
        if job.decision is Decision.REFINE:
            eps = noise_batch([job.request.seed], "rollback", [0], self.shape)
            t = torch.tensor([self._refine.plan[0].t], dtype=torch.float64)
            x = rollback(job.x[None], eps, t, self._refine.painter.schedule)[0]
            self._enter(job, Stage.TEACHER, self._refine, x)
        else:
            # The paper's regeneration: same prompt and the same initial noise as the draft.
            self._enter(job, Stage.TEACHER, self._regenerate, job.noise)

    @torch.inference_mode()
    def decode(self, jobs: Sequence[Job]) -> None:
        """Turn the teacher's latents into pictures."""
        begun = self._clock()
        images = self._decode(self._refine.painter, jobs)
        for i, job in enumerate(jobs):
            job.image, job.stage = images[i].clone(), Stage.DONE
        self._charge(jobs, "decode", 0, begun)

    def _decode(self, painter: Painter, jobs: Sequence[Job]) -> Tensor:
        return painter.decode(self._pad(torch.stack([j.x for j in jobs])))[: len(jobs)]

    def _pad(self, x: Tensor) -> Tensor:
        """Rows up to the batch size, copies of the first one: a constant shape keeps kernels, and so bits, the same."""
        missing = self.settings.batch_size - len(x)
        return x if missing <= 0 else torch.cat([x, x[:1].expand(missing, *x.shape[1:])])

    def _padded(self, texts: list[str]) -> list[str]:
        return texts + texts[:1] * (self.settings.batch_size - len(texts))

    def _charge(self, jobs: Sequence[Job], name: str, evaluations: int, begun: float) -> None:
        seconds = (self._clock() - begun) / len(jobs)
        for job in jobs:
            job.cost.add(name, evaluations, seconds)


ACTIONS: dict[Stage, Callable[[Machine, Sequence[Job]], None]] = {
    Stage.NEW: Machine.start,
    Stage.STUDENT: Machine.step,
    Stage.SCORE: Machine.score,
    Stage.TEACHER: Machine.step,
    Stage.DECODE: Machine.decode,
}
"""What to call for jobs in a stage."""
