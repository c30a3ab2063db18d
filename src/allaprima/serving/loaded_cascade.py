"""A cascade for each distinct settings, all of one pipeline's networks; the least recently used one is let go."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from allaprima.cascade.base import BaseCascade
from allaprima.cascade.job import Stage
from allaprima.cascade.pixel_cascade import PixelCascade
from allaprima.cascade.policy import AlwaysPolicy, Decision, Policy
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.settings import CascadeSettings
from allaprima.conditioning.edit import share_of
from allaprima.pipeline import AdaptivePipeline

COMPUTE = "compute"
"""The lane of everything that computes here."""
RECENT = 0.3
"""Weight of the newest call in the mean of a stage's seconds."""


@dataclass(eq=False)
class LoadedCascade:
    """A cascade and how long its calls take. Requests hold theirs, so one that is let go of lives as long as they do."""

    cascade: BaseCascade
    waiters: frozenset[Stage]
    """Stages whose model waits for someone else (a server): each has a lane of its own."""
    seconds: dict[Stage, float] = field(default_factory=dict[Stage, float])
    """Recent mean of a call, by stage."""

    @property
    def size(self) -> int:
        """Rows of its batches."""
        return self.cascade.settings.batch_size

    def lane(self, stage: Stage) -> str:
        """Which thread takes jobs of a stage further."""
        return str(stage) if stage in self.waiters else COMPUTE

    def took(self, stage: Stage, seconds: float) -> None:
        """Note that a call took so long."""
        before = self.seconds.get(stage, seconds)
        self.seconds[stage] = before + RECENT * (seconds - before)

    def least_seconds(self, request: GenerationRequest, policy: Policy) -> float:
        """Return what a request takes if it never waits and its draft is accepted; 0 for what hasn't been seen yet."""
        s, whole = self.cascade.settings, isinstance(self.cascade, PixelCascade)
        if policy.actions(Decision(s.strategy)) == frozenset((Decision.REGENERATE,)):
            steps = s.teacher_steps if request.edit is None else share_of(s.teacher_steps, request.edit.strength)
            calls = {Stage.NEW: 1, Stage.TEACHER: 1 if whole else steps, Stage.DECODE: 1}
        else:
            calls = {Stage.NEW: 1, Stage.STUDENT: 1 if whole else s.student_steps, Stage.SCORE: 1}
        return sum(n * self.seconds.get(stage, 0.0) for stage, n in calls.items())


class CascadeCache:
    """Cascades by settings. Not safe for threads: the engine holds a lock."""

    def __init__(self, pipe: AdaptivePipeline, most: int) -> None:
        self._pipe, self._most = pipe, most
        self._loaded: OrderedDict[CascadeSettings, LoadedCascade] = OrderedDict()
        models = {Stage.STUDENT: pipe.student, Stage.TEACHER: pipe.teacher}
        self.waiters = frozenset(stage for stage, model in models.items() if getattr(model, "waits", False))

    def __len__(self) -> int:
        return len(self._loaded)

    def of(self, settings: CascadeSettings) -> LoadedCascade:
        """Return the cascade of these settings. Raises `SettingError` for settings that the models can't meet."""
        found = self._loaded.get(settings)
        if found is None:
            # Its own policy is never asked: every job brings one.
            cascade = self._pipe.cascade(settings, AlwaysPolicy(Decision.ACCEPT))
            found = self._loaded[settings] = LoadedCascade(cascade, self.waiters)
            while len(self._loaded) > self._most:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(settings)
        return found
