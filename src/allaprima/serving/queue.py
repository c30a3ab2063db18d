"""Who is let in, and who is next: a bounded waiting room with priorities, deadlines and fair shares.

The next to be painted is of the highest priority; a request counts one priority higher for every `ageing` seconds it has
waited, so that low ones come through too. Among equals it is of the client that has had the least: every picture begun costs
its client `H W (student + teacher steps)`, and a client that comes back is not owed what it didn't ask for meanwhile (start
times of fair queueing: nobody saves up). Among a client's own the oldest goes first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import SettingError
from allaprima.serving.scheduler import PATIENCE

Who = TypeVar("Who", bound="QueueItem")
FLOAT = 4
"""Bytes of a number in a picture."""


@dataclass(frozen=True)
class EngineLimits:
    """What an engine holds at most. Raises `SettingError` for limits that nothing fits in."""

    queue: int = 256
    """Requests that wait."""
    in_flight: int = 48
    """Jobs that are painted at once: a batch of students', one of teachers', one of what is between, at 16 rows each. More
    fill batches better; fewer keep the queue's order (priorities count in the queue only)."""
    bytes: int = 2 * 2**30
    """Memory of pictures that came with queued requests and of jobs in flight, as `given_bytes` and `job_bytes` count it."""
    machines: int = 32
    """Distinct settings kept ready; the least recently asked for goes first."""
    patience: int = PATIENCE
    """How often other batches may go ahead of one that isn't full (`schedule`)."""
    ageing: float = 30.0
    """Seconds of waiting that count as one priority."""

    def __post_init__(self) -> None:
        for name in ("queue", "in_flight", "bytes", "machines"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name}={getattr(self, name)!r} must be at least 1: nothing would ever be painted.")
        if self.patience < 0 or not self.ageing > 0:
            raise SettingError(f"patience={self.patience!r}, ageing={self.ageing!r}: 0 or more, and above 0, are due.")


def given_bytes(request: GenerationRequest, settings: CascadeSettings) -> int:
    """Bytes of the pictures that come with a request: edited, mask, controls (three channels each)."""
    edit = request.edit
    planes = 3 * len(request.controls) + (0 if edit is None else 3 + (edit.mask is not None))
    return planes * settings.height * settings.width * FLOAT


def job_bytes(request: GenerationRequest, settings: CascadeSettings) -> int:
    """Bytes of a job in flight: what was given, draft and picture, and as much again for latents and prompts."""
    return given_bytes(request, settings) + 4 * 3 * settings.height * settings.width * FLOAT


def work(settings: CascadeSettings) -> float:
    """What a picture is charged to its client: pixels times the steps it may take."""
    return settings.height * settings.width * (settings.student_steps + settings.teacher_steps)


@dataclass(frozen=True)
class QueueEntry:
    """What the room goes by."""

    client: str
    priority: int
    deadline: float | None
    accepted: float
    """When it was let in, by the engine's clock."""
    work: float
    """What its client is charged."""
    bytes: int
    """Held while it waits."""


class QueueItem(Protocol):
    """Whoever waits."""

    @property
    def entry(self) -> QueueEntry:
        """Its place."""
        ...


class RequestQueue(Generic[Who]):
    """Those who wait, in the order they are served. Not safe for threads: the engine holds its lock."""

    def __init__(self, ageing: float) -> None:
        self.bytes = 0
        self._ageing = ageing
        self._lines: dict[tuple[str, int], deque[Who]] = {}
        self._had: dict[str, float] = {}
        self._clock = 0.0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Who]:
        for line in self._lines.values():
            yield from line

    def add(self, several: Iterable[Who]) -> None:
        """Let them in."""
        for who in several:
            entry = who.entry
            self._had[entry.client] = max(self._had.get(entry.client, 0.0), self._floor(entry.client))
            self._lines.setdefault((entry.client, entry.priority), deque()).append(who)
            self._count += 1
            self.bytes += entry.bytes

    def _floor(self, client: str) -> float:
        """A client that waits already keeps what it has had; one that comes (back) begins where the others are."""
        return 0.0 if any(c == client for c, _ in self._lines) else self._clock

    def next(self, now: float) -> Who | None:
        """Who is served next at this time; it keeps its place."""
        heads = [line[0] for line in self._lines.values()]
        return min(heads, key=lambda w: self._rank(w.entry, now), default=None)

    def _rank(self, entry: QueueEntry, now: float) -> tuple[int, float, float]:
        priority = entry.priority + int(max(0.0, now - entry.accepted) / self._ageing)
        return -priority, self._had[entry.client], entry.accepted

    def serve(self, who: Who) -> None:
        """It leaves, and its client is charged."""
        waiting = len({client for client, _ in self._lines})
        self._had[who.entry.client] += who.entry.work
        self._clock += who.entry.work / waiting
        self.remove(who)

    def remove(self, who: Who) -> None:
        """It leaves unserved. Raises `ValueError` if it isn't here."""
        key = who.entry.client, who.entry.priority
        line = self._lines.get(key, deque())
        line.remove(who)
        self._count -= 1
        self.bytes -= who.entry.bytes
        if not line:
            del self._lines[key]
            here = {client for client, _ in self._lines}
            # Who is away is forgotten once the others have caught up; in an empty room there is nobody to be fair to.
            self._had = {c: had for c, had in self._had.items() if c in here or (here and had > self._clock)}
            self._clock = self._clock if here else 0.0

    def late(self, now: float) -> list[Who]:
        """Those whose deadline has passed; they keep their places."""
        return [w for w in self if w.entry.deadline is not None and w.entry.deadline <= now]

    def next_deadline(self) -> float | None:
        """The earliest one."""
        return min((w.entry.deadline for w in self if w.entry.deadline is not None), default=None)
