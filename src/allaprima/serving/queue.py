"""The queue of requests that wait, with priorities, deadlines and fair shares, and the limits of an engine.

The next to be painted is of the highest priority; a request counts one priority higher for every `ageing` seconds it has
waited, so that low ones come through too. Among equals it is of the client that has had the least: every picture begun costs
its client `H W (student + teacher steps)`, and a client that comes back is not owed what it didn't ask for meanwhile (start
times of fair queueing: nobody saves up). Among a client's own the oldest goes first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from allaprima.core.errors import SettingError
from allaprima.serving.batching import PATIENCE
from allaprima.serving.in_flight import InFlightRequest


@dataclass(frozen=True)
class EngineLimits:
    """What an engine holds at most. Raises `SettingError` for limits that nothing fits in."""

    queue: int = 256
    """Requests that wait."""
    in_flight: int = 48
    """Jobs that are painted at once: a batch of students', one of teachers', one of what is between, at 16 rows each. More
    fill batches better; fewer keep the queue's order (priorities count in the queue only)."""
    bytes: int = 2 * 2**30
    """Memory of pictures that came with queued requests and of jobs in flight, as `serving.in_flight` counts it."""
    cascades: int = 32
    """Distinct settings kept ready; the least recently asked for goes first."""
    patience: int = PATIENCE
    """How often other batches may go ahead of one that isn't full (`schedule`)."""
    ageing: float = 30.0
    """Seconds of waiting that count as one priority."""

    def __post_init__(self) -> None:
        for name in ("queue", "in_flight", "bytes", "cascades"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name}={getattr(self, name)!r} must be at least 1: nothing would ever be painted.")
        if self.patience < 0 or not self.ageing > 0:
            raise SettingError(f"patience={self.patience!r}, ageing={self.ageing!r}: 0 or more, and above 0, are due.")


class RequestQueue:
    """Requests that wait, in the order they are served. Not safe for threads: the engine holds its lock."""

    def __init__(self, ageing: float) -> None:
        self.bytes = 0
        self._ageing = ageing
        self._lines: dict[tuple[str, int], deque[InFlightRequest]] = {}
        self._had: dict[str, float] = {}
        self._clock = 0.0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[InFlightRequest]:
        for line in self._lines.values():
            yield from line

    def add(self, items: Iterable[InFlightRequest]) -> None:
        """Let them in."""
        for item in items:
            request = item.handle.request
            self._had[request.client] = max(self._had.get(request.client, 0.0), self._floor(request.client))
            self._lines.setdefault((request.client, request.priority), deque()).append(item)
            self._count += 1
            self.bytes += item.queued_bytes

    def _floor(self, client: str) -> float:
        """Return what a client has had at least: one that comes (back) begins where the others are."""
        return 0.0 if any(c == client for c, _ in self._lines) else self._clock

    def next(self, now: float) -> InFlightRequest | None:
        """Return the one that is served next at this time; it stays in the queue."""
        heads = [line[0] for line in self._lines.values()]
        return min(heads, key=lambda item: self._rank(item, now), default=None)

    def _rank(self, item: InFlightRequest, now: float) -> tuple[int, float, float]:
        request = item.handle.request
        priority = request.priority + int(max(0.0, now - item.accepted) / self._ageing)
        return -priority, self._had[request.client], item.accepted

    def serve(self, item: InFlightRequest) -> None:
        """Let it leave; its client is charged."""
        waiting = len({client for client, _ in self._lines})
        self._had[item.handle.request.client] += item.work
        self._clock += item.work / waiting
        self.remove(item)

    def remove(self, item: InFlightRequest) -> None:
        """Let it leave unserved. Raises `ValueError` if it isn't here."""
        key = item.handle.request.client, item.handle.request.priority
        line = self._lines.get(key, deque())
        line.remove(item)
        self._count -= 1
        self.bytes -= item.queued_bytes
        if not line:
            del self._lines[key]
            here = {client for client, _ in self._lines}
            # Who is away is forgotten once the others have caught up; in an empty queue there is nobody to be fair to.
            self._had = {c: had for c, had in self._had.items() if c in here or (here and had > self._clock)}
            self._clock = self._clock if here else 0.0

    def late(self, now: float) -> list[InFlightRequest]:
        """Return those whose deadline has passed; they stay in the queue."""
        return [item for item in self if item.late(now)]
