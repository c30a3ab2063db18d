"""Paints pairs and watches: both pictures, the Gram matrix of the denoised predictions, attention to each token.

The machine is the cascade's own, so that a draft here is the draft `allaprima generate` paints, and the teacher's picture
the one it regenerates: same prompt, same initial noise. Jobs of one call stay together from the first step to the last.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from allaprima.analysis.geometry import gram
from allaprima.analysis.influence import over_steps
from allaprima.cascade.job import Job, Stage
from allaprima.cascade.request import GenerationRequest
from allaprima.core.errors import PaintingError
from allaprima.core.types import Condition
from allaprima.models.components.attention import AttentionRecorder, cross_attentions, watched


class StepsCascade(Protocol):
    """The machine, as far as it is used here."""

    def act(self, stage: Stage, jobs: Sequence[Job]) -> None:
        """Take jobs that are in one stage a step further."""
        ...


class RecordingModel:
    """A painter that keeps what its denoiser predicted, call by call; all else is the painter's own."""

    def __init__(self, model: Any) -> None:
        self._painter = model
        self.times: list[Tensor] = []
        """One `(B,)` a call."""
        self.predictions: list[Tensor] = []
        """One `(B, C, H, W)` a call."""
        self.attention: list[Tensor] = []
        """One `(B, L)` a call, of the conditional half."""
        self.watch: AttentionRecorder | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._painter, name)

    @property
    def denoiser(self) -> _Noted:
        """The painter's, noted."""
        return _Noted(self._painter.denoiser, self)

    def note(self, t: Tensor, x0: Tensor) -> None:
        """One call of the denoiser."""
        self.times.append(t.detach().cpu().double())
        self.predictions.append(x0.detach().cpu().float().clone())
        if self.watch is not None:
            # With classifier-free guidance the prompt's rows follow those of the negative one; else they are all.
            self.attention.append(self.watch.take()[-len(x0) :])

    def forget(self) -> None:
        """Start anew."""
        self.times, self.predictions, self.attention = [], [], []

    @contextmanager
    def attending(self) -> Generator[None]:
        """While it lasts, attention is noted too. Raises `ModelError` for a network without cross-attention."""
        with watched(self._painter.network) as self.watch:
            yield
        self.watch = None


class _Noted:
    """A guided denoiser that tells what it said."""

    def __init__(self, inner: Any, model: RecordingModel) -> None:
        self._inner, self._painter = inner, model
        self.evaluations_per_call: int = inner.evaluations_per_call

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The inner one's."""
        return self._said(self._inner(x_t, t, cond), t)

    def unguided(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The inner one's."""
        return self._said(self._inner.unguided(x_t, t, cond), t)

    def _said(self, x0: Tensor, t: Tensor) -> Tensor:
        self._painter.note(t, x0)
        return x0


def attends(model: Any) -> bool:
    """Whether prompt influence can be measured on it: one network, with cross-attention that torch shows."""
    return not hasattr(model, "networks") and bool(cross_attentions(getattr(model, "network", None)))


def paint(cascade: StepsCascade, requests: Sequence[GenerationRequest]) -> list[Job]:
    """All of them together, through every stage. Raises `PaintingError` naming the first that failed."""
    jobs = [Job(r) for r in requests]
    while waiting := [j for j in jobs if j.stage is not Stage.DONE]:
        stage = min((j.stage for j in waiting), key=list(Stage).index)
        cascade.act(stage, [j for j in waiting if j.stage is stage])
    failed = next((j for j in jobs if j.image is None), None)
    if failed is not None:
        raise PaintingError(
            f"{failed.request.prompt!r} could not be painted: {failed.error}. Take it out of the prompts.", []
        )
    return jobs


@dataclass(frozen=True)
class PairSide:
    """One side of a batch of pairs, B of them."""

    images: Tensor
    """`(B, 3, H, W)` uint8."""
    times: Tensor = field(default_factory=lambda: torch.empty(0))
    """`(T,)`; empty where nothing was watched."""
    points: Tensor = field(default_factory=lambda: torch.empty(0))
    """`(B, T, D)` denoised predictions."""
    attention: Tensor | None = None
    """`(B, L)`, mean over steps."""


def paint_side(cascade: StepsCascade, requests: Sequence[GenerationRequest], model: RecordingModel | None) -> PairSide:
    """`model`: the machine's side that is watched, if any."""
    if model is not None:
        model.forget()
    jobs = paint(cascade, requests)
    images = torch.stack([(j.image * 255).round().byte() for j in jobs if j.image is not None]).cpu()
    if model is None or not model.predictions:
        return PairSide(images)
    n = len(requests)
    points = torch.stack([x[:n].flatten(1) for x in model.predictions], 1)
    attention = over_steps([a[:n] for a in model.attention]) if model.attention else None
    return PairSide(images, torch.stack([t[0] for t in model.times]), points, attention)


def tensors_of(student: PairSide, teacher: PairSide) -> dict[str, Tensor]:
    """What is kept of a batch: pictures, and, where they were watched, Gram matrix, times, attention."""
    kept = {"student": student.images, "teacher": teacher.images}
    if len(student.times) and len(teacher.times):
        kept |= {
            "gram": gram(torch.cat([student.points, teacher.points], 1)),
            "student_times": student.times, "teacher_times": teacher.times,
        }  # fmt: skip
    for name, side in (("student", student), ("teacher", teacher)):
        if side.attention is not None:
            kept[f"{name}_attention"] = side.attention
    return kept
