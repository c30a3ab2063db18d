"""The scheduler of an engine: requests that wait and that are in flight, and which of them make the next batch.

A request is added, waits in the queue, is begun where there is room for it, and is finished once. All of it
happens under the engine's lock, at step boundaries; which batch is next is `serving.batching`'s rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from allaprima.cascade.job import Stage
from allaprima.core.errors import DeadlinePassedError, QueueFullError, SettingError
from allaprima.serving.batching import BatchGroup, choose, oldest_first, passed_after
from allaprima.serving.handle import Cancelled, Event, Failed
from allaprima.serving.in_flight import InFlightRequest
from allaprima.serving.loaded_cascade import LoadedCascade
from allaprima.serving.queue import EngineLimits, RequestQueue
from allaprima.serving.snapshot import Meter

Key = tuple[LoadedCascade, Stage, int]
"""What a batch has in common: cascade, stage, student."""
PendingEvent = tuple[InFlightRequest, Event]
"""An event that is decided and still to be told, outside of the lock."""


class Scheduler:
    """Requests of one engine. Not safe for threads: the engine holds its lock."""

    def __init__(self, limits: EngineLimits, meter: Meter, remote: bool) -> None:
        """`remote`: jobs go to workers one by one, which make batches of them, and in one lane."""
        self.limits, self.meter, self.remote = limits, meter, remote
        self.requests: dict[str, InFlightRequest] = {}
        """Every request that hasn't been told its end, by the id of its handle."""
        self.queue = RequestQueue(limits.ageing)
        self.running: list[InFlightRequest] = []
        self._cancelled: list[PendingEvent] = []
        """Cancelled in the queue, to be told."""
        self._passed: dict[str, Mapping[Key, int]] = {}

    @property
    def held_bytes(self) -> int:
        """Of images that came with queued requests, and of jobs in flight."""
        return self.queue.bytes + sum(item.bytes for item in self.running)

    def check_room(self, items: Sequence[InFlightRequest]) -> None:
        """Raise `QueueFullError` where there is no room for them now, `SettingError` where there never is."""
        n, most = len(items), self.limits.queue
        if n > most:
            raise SettingError(f"{n} pictures at once are more than the queue of {most} can ever hold: ask for fewer.")
        held = self.held_bytes + sum(item.queued_bytes for item in items)
        over = max(0, len(self.queue) + n - most)
        if over or held > self.limits.bytes:
            self.meter.counts["refused"] += n
            what = f"{len(self.queue)} of {most} places are taken" if over else f"{held} bytes would be held"
            raise QueueFullError(f"the queue is full ({what}): try again later.", self.meter.seconds_for(over or n))

    def add(self, items: Sequence[InFlightRequest]) -> None:
        """Let them wait."""
        self.queue.add(items)
        self.requests.update((item.handle.id, item) for item in items)

    def cancel(self, item: InFlightRequest) -> None:
        """Finish a request that waits; one in flight is finished at the next `update`."""
        item.cancelled = True
        if item not in self.running:
            self._cancelled.append(self.finish(item, Cancelled()))

    def finish(self, item: InFlightRequest, event: Event) -> PendingEvent:
        """Decide the end of a request, which leaves queue or flight; return the event that says so, to be told."""
        item.closed = True
        if item in self.running:
            self.running.remove(item)
        else:
            self.queue.remove(item)
        if isinstance(event, Failed):
            self.meter.counts["failed"] += 1
            self.meter.counts["expired"] += isinstance(event.error, DeadlinePassedError)
        elif isinstance(event, Cancelled):
            self.meter.counts["cancelled"] += 1
        return item, event

    def take_cancelled(self) -> list[PendingEvent]:
        """Return what is to be told of requests that were cancelled in the queue, once."""
        told, self._cancelled = self._cancelled, []
        return told

    def update(self, now: float) -> list[PendingEvent]:
        """Let go of those who left and who are late, and begin others; return what is to be told."""
        told = self.take_cancelled()
        told += [self.finish(item, _late("passed while it waited")) for item in self.queue.late(now)]
        for item in [item for item in self.running if not item.busy]:
            if item.cancelled:
                told.append(self.finish(item, Cancelled()))
            elif item.late(now):
                told.append(self.finish(item, _late("passed while it was painted")))
        return told + self._begin(now)

    def _begin(self, now: float) -> list[PendingEvent]:
        """Begin as many as there is room for; those that can't make it any more aren't begun."""
        told: list[PendingEvent] = []
        while len(self.running) < self.limits.in_flight and (item := self.queue.next(now)) is not None:
            request = item.handle.request
            if request.deadline is not None:
                soonest = now + item.loaded.least_seconds(request.request, request.policy)
                if soonest > request.deadline:
                    told.append(self.finish(item, _late("can't be met any more")))
                    continue
            if self.running and self.held_bytes - item.queued_bytes + item.bytes > self.limits.bytes:
                break
            self.queue.serve(item)
            self.running.append(item)
        return told

    def next_batch(self, lane: str) -> list[InFlightRequest]:
        """Return the batch that goes next in this lane; its requests are busy from now on."""
        ready: dict[Key, list[InFlightRequest]] = {}
        for item in self.running:
            # A busy request's job is another thread's: not even its stage is looked at.
            if not item.busy and (self.remote or item.loaded.lane(item.job.stage) == lane):
                stage = item.job.stage
                student = item.job.student_index if stage is Stage.STUDENT else 0
                ready.setdefault((item.loaded, stage, student), []).append(item)
        passed = self._passed.get(lane, {})
        groups = [
            BatchGroup(key, str(key[1]), len(items), self._rows(key[0]), min(i.accepted for i in items), passed.get(key, 0))
            for key, items in ready.items()
        ]
        chosen = choose(groups, self.limits.patience)
        self._passed[lane] = passed_after(groups, chosen)
        if chosen is None:
            return []
        items = ready[chosen]
        batch = [items[i] for i in oldest_first([item.accepted for item in items], self._rows(chosen[0]))]
        for item in batch:
            item.busy = True
        return batch

    def _rows(self, loaded: LoadedCascade) -> int:
        return 1 if self.remote else loaded.size


def _late(message: str) -> Failed:
    return Failed(DeadlinePassedError(f"the deadline {message}: allow for more, or ask when there is less to do."))
