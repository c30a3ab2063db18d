"""An accepted request on its way through an engine, and what it takes of the engine's memory and of its client's share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from allaprima.cascade.job import Job, Stage
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.settings import CascadeSettings
from allaprima.serving.handle import RequestHandle
from allaprima.serving.loaded_cascade import LoadedCascade
from allaprima.serving.snapshot import Share

FLOAT = 4
"""Bytes of a number in an image."""


@dataclass(eq=False)
class InFlightRequest:
    """An accepted request with its job. The engine's lock guards all but the job of a busy one."""

    handle: RequestHandle
    loaded: LoadedCascade
    job: Job
    accepted: float
    """When it was accepted, by the engine's clock."""
    bytes: int
    """Held while it is in flight."""
    queued_bytes: int = 0
    """Held while it waits."""
    work: float = 0.0
    """What its client is charged."""
    stages: frozenset[Stage] | None = None
    """Those that it is taken through here; None: all, to its end."""
    busy: bool = False
    """In a batch now: only the thread that took it touches it."""
    cancelled: bool = False
    closed: bool = False
    """Its end is decided; whoever set this tells it."""
    steps: Counter[str] = field(default_factory=Counter[str])
    """Network steps so far, by model."""
    share: Share = field(default_factory=Share)
    abandon: Callable[[], None] | None = None
    """Gives up what a remote worker does with it."""

    def late(self, now: float) -> bool:
        """Whether its deadline has passed."""
        deadline = self.handle.request.deadline
        return deadline is not None and deadline <= now


def given_bytes(request: GenerationRequest, settings: CascadeSettings) -> int:
    """Bytes of the images that come with a request: edited, mask, controls (three channels each)."""
    edit = request.edit
    planes = 3 * len(request.controls) + (0 if edit is None else 3 + (edit.mask is not None))
    return planes * settings.height * settings.width * FLOAT


def job_bytes(request: GenerationRequest, settings: CascadeSettings) -> int:
    """Bytes of a job in flight: what came with it, draft and image, and as much again for latents and prompts."""
    return given_bytes(request, settings) + 4 * 3 * settings.height * settings.width * FLOAT


def work(settings: CascadeSettings) -> float:
    """Return what an image is charged to its client: pixels times the steps it may take."""
    return settings.height * settings.width * (settings.student_steps + settings.teacher_steps)
