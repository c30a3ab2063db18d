"""What a fleet has to do: stages of a picture, kinds of hardware, thresholds to choose from.

A picture goes `new -> student -> score`, and with probability `share` on to `teacher -> decode`. Stages are those of
`cascade.job`: `new` encodes the prompt, `student` and `teacher` are network steps, `score` decodes a draft and scores it,
`decode` decodes what the teacher made. Times are of one call for a batch of fixed shape: it costs the same however many of
its places are taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from allaprima.core.errors import SettingError

STAGES = ("new", "student", "score", "teacher", "decode")
STEPPED = ("student", "teacher")
"""Stages of several calls a picture."""
IN_FLIGHT = 3
"""Batches of pictures that a machine which does it all has begun at once: the engine's 48 of 16 (`serving.queue`)."""
APART: Mapping[str, tuple[str, ...]] = {
    "student": ("new", "student"),
    "oracle": ("score",),
    "teacher": ("teacher", "decode"),
}
"""Pools that scale apart, and what each does."""
TOGETHER: Mapping[str, tuple[str, ...]] = {"machine": STAGES}
"""Every machine does all of it, as the in-process engine."""
TEACHER_ONLY: Mapping[str, tuple[str, ...]] = {"teacher": ("new", "teacher", "decode")}
"""No drafts: what the saving is counted against."""


@dataclass(frozen=True)
class Kind:
    """One kind of machine. Raises `SettingError` for what no machine has."""

    name: str
    cost: float
    """Of one machine for an hour, in any currency."""
    batch: int
    """Pictures a call."""
    seconds: Mapping[str, tuple[float, ...]]
    """By stage: times of one call, one if given, many if recorded."""
    at_most: int | None = None
    """How many there are; None: as many as are wanted."""
    measured: bool = False
    """Whether the times were recorded, or only given."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.cost) and self.cost > 0):
            raise SettingError(f"hardware {self.name!r}: cost={self.cost!r} an hour must be a number above 0.")
        if self.batch < 1:
            raise SettingError(f"hardware {self.name!r}: batch={self.batch!r} must be 1 or more pictures a call.")
        if self.at_most is not None and self.at_most < 1:
            raise SettingError(
                f"hardware {self.name!r}: at_most={self.at_most!r} must be 1 or more; leave the kind out if there is none."
            )
        for stage in STAGES:
            times = self.seconds.get(stage, ())
            if not times or not all(math.isfinite(t) and t >= 0 for t in times):
                raise SettingError(
                    f"hardware {self.name!r}: seconds of {stage!r} are {list(times)[:3]!r}: numbers of 0 or more are due,"
                    " one if given, many if recorded."
                )
        if not any(self.mean(s) for s in STAGES):
            raise SettingError(f"hardware {self.name!r}: all seconds are 0: give what a step takes.")

    def mean(self, stage: str) -> float:
        """Mean seconds of one call."""
        return float(np.mean(self.seconds[stage]))


@dataclass(frozen=True)
class Choice:
    """One threshold of a calibration: what it sends to the teacher and how good the pictures are."""

    threshold: float
    share: float
    """Of the drafts that is escalated, in [0, 1]."""
    quality: float = float("nan")
    """Mean of finished pictures, higher is better; nan where it isn't known."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise SettingError(f"threshold {self.threshold!r}: share={self.share!r} must be in [0, 1].")


@dataclass(frozen=True)
class Demand:
    """What is asked of the fleet."""

    rate: float
    """Pictures a second."""
    p95: float
    """Seconds from arrival to picture that 95 of 100 pictures may take at most."""
    student_steps: int
    teacher_steps: int
    """Of an escalation."""
    teacher_only_steps: int
    """Of a picture when there is no student."""
    burstiness: float = 1.0
    """Squared coefficient of variation of the times between arrivals: 1 is Poisson, 0 a clock, 4 is bursty."""
    occupied_at_most: float = 0.9
    """Share of a machine's places that may be taken on average: what is left is for rates that were underestimated."""

    def __post_init__(self) -> None:
        for name in ("rate", "p95"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise SettingError(f"{name}={value!r} must be a number above 0.")
        if not (math.isfinite(self.burstiness) and self.burstiness >= 0):
            raise SettingError(f"burstiness={self.burstiness!r} must be a number of 0 or more; 1 is Poisson.")
        if not 0 < self.occupied_at_most <= 1:
            raise SettingError(f"occupied_at_most={self.occupied_at_most!r} must be in (0, 1]; 0.9 leaves a tenth free.")
        for name in ("student_steps", "teacher_steps", "teacher_only_steps"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name}={getattr(self, name)!r} must be 1 or more.")

    def steps(self, stage: str, student: bool = True) -> int:
        """Calls a picture of a stage."""
        if stage == "student":
            return self.student_steps
        if stage == "teacher":
            return self.teacher_steps if student else self.teacher_only_steps
        return 1


@dataclass(frozen=True)
class Layout:
    """Which pools there are, and whether there is a student at all."""

    name: str
    pools: Mapping[str, tuple[str, ...]]
    student: bool = True
    shared_queue: bool = True
    """Whether machines of a pool take from one queue; else pictures are sent to the machine that has the fewest."""

    def visits(self, stage: str, share: float) -> float:
        """How many of a layout's pictures get to a stage."""
        return share if self.student and stage in ("teacher", "decode") else 1.0

    def pool_of(self, stage: str) -> str:
        """Who does it."""
        return next(pool for pool, stages in self.pools.items() if stage in stages)


def doors(stages: Sequence[str]) -> tuple[str, ...]:
    """Stages of a pool whose places decide whether a machine takes one more: up to the first of several calls."""
    stepped = next((s for s in stages if s in STEPPED), stages[-1])
    return tuple(stages[: list(stages).index(stepped) + 1])


LAYOUTS: Mapping[str, Layout] = {
    "apart": Layout("apart", APART),
    "together": Layout("together", TOGETHER, shared_queue=False),
    "teacher-only": Layout("teacher-only", TEACHER_ONLY, student=False),
}


@dataclass(frozen=True)
class Recording:
    """Times of whole batches of a real engine, by stage, in the order they ran."""

    machine: str
    batch: int
    seconds: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])
