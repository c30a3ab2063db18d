"""What an engine says of itself: counts and seconds since it was made, and what it holds now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from allaprima.cascade.job import Stage
from allaprima.cascade.result import Result
from allaprima.serving.controller import Change


@dataclass(frozen=True)
class Snapshot:
    """One moment of an engine; counts and seconds run since it was made and never fall. Stages go by their names."""

    queued: int
    """Requests that wait to be begun."""
    in_flight: Mapping[str, int]
    """Jobs begun and not finished, by the stage they are in; stages without any are left out."""
    held_bytes: int
    """Of given pictures and jobs in flight, as `serving.in_flight` counts them."""
    cascades: int
    """Distinct settings kept ready."""
    running: bool
    """Whether the compute thread works: False before `start`, after `stop`, and when it died."""
    draining: bool
    accepted: int
    """Requests let in; each ends as finished, failed or cancelled."""
    finished: int
    failed: int
    """Of any cause, `expired` included."""
    expired: int
    """Failed by their deadlines."""
    cancelled: int
    refused: int
    """Requests that found no room, or came while draining."""
    decisions: Mapping[str, int]
    """Finished pictures by decision: `accept`, `refine`, `regenerate`."""
    mean_teacher_steps: float | None
    """Teacher's steps a finished picture, accepted drafts (none) included; None before the first."""
    mean_student_steps: float | None
    """The student's, of all its drafts."""
    batches: Mapping[str, int]
    """Batches gone, by stage."""
    rows: Mapping[str, int]
    """Jobs in them."""
    fill: Mapping[str, float]
    """Mean share of a batch's rows that were jobs, not padding, in (0, 1]."""
    seconds: Mapping[str, float]
    """Seconds in the cascade, by stage."""
    outside_seconds: float
    """Seconds the threads spent between batches: choosing, bookkeeping, listeners; waiting for work isn't counted."""
    oracle_failures: int
    """Drafts and second looks that the oracle gave no number for, whatever `on_oracle_failure` made of it."""
    oracle_timeouts: int
    """Calls of the oracle given up after `oracle_timeout`."""
    retried: int
    """Jobs taken alone after an exception in their batch."""
    ceiling: float | None
    """What the controller lowers adjustable thresholds to; None: it lowers nothing, or there is none."""
    changes: tuple[Change, ...]
    """The controller's last changes, oldest first."""


@dataclass
class Share:
    """What one job took of batches, by stage: added up over jobs it is what `Meter.batch` counts."""

    calls: dict[str, int] = field(default_factory=dict[str, int])
    batches: dict[str, float] = field(default_factory=dict[str, float])
    capacity: dict[str, float] = field(default_factory=dict[str, float])
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    longest: dict[str, float] = field(default_factory=dict[str, float])
    """Seconds of all of its calls, whoever else was in them."""

    def batch(self, stage: Stage, jobs: int, size: int, seconds: float) -> None:
        """Note that it was in a batch of so many."""
        name = str(stage)
        self.calls[name] = self.calls.get(name, 0) + 1
        for all_, part in (
            (self.batches, 1 / jobs), (self.capacity, size / jobs), (self.seconds, seconds / jobs), (self.longest, seconds),
        ):  # fmt: skip
            all_[name] = all_.get(name, 0.0) + part


@dataclass
class Meter:
    """What adds up. The engine's lock guards it."""

    counts: Counter[str] = field(default_factory=Counter[str])
    """`accepted`, `finished`, `failed`, `expired`, `cancelled`, `refused`, `oracle_failures`, `retried`."""
    decisions: Counter[str] = field(default_factory=Counter[str])
    batches: dict[str, float] = field(default_factory=dict[str, float])
    rows: Counter[str] = field(default_factory=Counter[str])
    capacity: dict[str, float] = field(default_factory=dict[str, float])
    """Rows there were room for."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    steps: Counter[str] = field(default_factory=Counter[str])
    """Of finished pictures, by painter."""
    outside: float = 0.0

    def batch(self, stage: Stage, jobs: int, size: int, seconds: float) -> None:
        """Count a batch that has gone."""
        share = Share()
        share.batch(stage, 1, size, seconds)
        self.elsewhere(share)
        self.rows[str(stage)] += jobs - 1

    def elsewhere(self, share: Share) -> None:
        """Count a job that was in batches of someone else's."""
        self.rows.update(share.calls)
        pairs = ((self.batches, share.batches), (self.capacity, share.capacity), (self.seconds, share.seconds))
        for all_, part in pairs:
            for name, value in part.items():
                all_[name] = all_.get(name, 0.0) + value

    def finished(self, result: Result, steps: Mapping[str, int]) -> None:
        """Count a finished picture."""
        self.counts["finished"] += 1
        self.decisions[str(result.decision)] += 1
        self.steps.update(steps)

    def mean_steps(self, model: str) -> float | None:
        """Return a finished picture's."""
        n = self.counts["finished"]
        return self.steps[model] / n if n else None

    def seconds_for(self, pictures: int) -> float:
        """About how long so many pictures take, 1 to 120 s; 1 before any was finished."""
        n = self.counts["finished"]
        return min(120.0, max(1.0, pictures * sum(self.seconds.values()) / n)) if n else 1.0

    def snapshot(self, **now: Any) -> Snapshot:
        """With what the engine holds now."""
        names = ("accepted", "finished", "failed", "expired", "cancelled", "refused", "oracle_failures", "retried")
        return Snapshot(
            **{name: self.counts[name] for name in names},
            decisions=dict(self.decisions),
            mean_teacher_steps=self.mean_steps("teacher"),
            mean_student_steps=self.mean_steps("student"),
            batches={stage: round(n) for stage, n in self.batches.items()},
            rows=dict(self.rows),
            fill={stage: self.rows[stage] / room for stage, room in self.capacity.items()},
            seconds=dict(self.seconds),
            outside_seconds=self.outside,
            **now,
        )
