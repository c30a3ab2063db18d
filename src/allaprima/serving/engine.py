"""The engine: the cascade's machine in a loop, for many callers at once.

One compute thread takes a batch a step further, looks who came, who left and who is late, chooses the next batch
(`schedule`), and so on. A request joins its student's batch at the next step, whatever steps the others are at; escalated
jobs of many requests share the teacher's. Batches have one shape, padded, and every noise belongs to its seed, so a picture
is to the byte the one that `AdaptivePipeline` paints alone with the same settings and threshold.

    submit -> waiting room -> NEW -> STUDENT.. -> SCORE -> (TEACHER.. -> DECODE (-> RECHECK)) -> DONE -> ticket

What ends a ticket is decided under the lock, once; listeners are called outside of it.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from allaprima.cascade.job import Job, Stage
from allaprima.cascade.policy import AlwaysPolicy, Decision
from allaprima.cascade.runner import result_of
from allaprima.core.errors import (
    DeadlinePassedError,
    DrainingError,
    EngineStoppedError,
    PictureFailedError,
    QueueFullError,
    ServingError,
    SettingError,
)
from allaprima.pipeline import AdaptivePipeline
from allaprima.serving.controller import Controller
from allaprima.serving.handle import (
    LAST,
    Cancelled,
    EngineRequest,
    Event,
    Failed,
    Finished,
    HandedOver,
    RequestHandle,
    Started,
)
from allaprima.serving.in_flight import InFlightRequest, act, draft_of, unscored, unsound
from allaprima.serving.loaded_cascade import COMPUTE, CascadeCache, LoadedCascade
from allaprima.serving.oracle_guard import GuardedOracle, OracleFailure, judges, when_unscored
from allaprima.serving.queue import EngineLimits, QueueEntry, RequestQueue, given_bytes, job_bytes, work
from allaprima.serving.remote_workers import RUNS, Back, RemoteWorkers, StageRun, adopt
from allaprima.serving.scheduler import BatchGroup, choose, oldest_first, passed_after
from allaprima.serving.snapshot import Meter, Snapshot

log = logging.getLogger(__name__)
Key = tuple[LoadedCascade, Stage, int]
"""What a batch has in common: machine, stage, student."""
PendingEvent = tuple[InFlightRequest, Event]
POLL_SECONDS = 0.25
"""Seconds between looks at the clock when there is nothing to do: deadlines pass, controllers come back."""


class Engine:
    """Paints for many callers with one pipeline's networks. `submit` from any thread; see `docs/serving.md`."""

    def __init__(
        self,
        pipe: AdaptivePipeline,
        limits: EngineLimits = EngineLimits(),  # noqa: B008 (frozen)
        clock: Callable[[], float] = time.monotonic,
        controller: Controller | None = None,
        on_oracle_failure: OracleFailure = "policy",
        oracle_timeout: float | None = None,
        workers: RemoteWorkers | None = None,
    ) -> None:
        """`clock`: the seconds of deadlines. `controller`: moves thresholds of asks that are `adjustable`.

        `on_oracle_failure`: what becomes of a draft that the oracle gave no number for, where its policy goes by scores:
        `policy` what the policy says of nan, `accept`, `regenerate`, or `refuse` (the request fails). `oracle_timeout`:
        seconds after which a call of the oracle is given up, a failure like any other; None waits for ever. `workers`: who
        takes jobs through their stages in place of this process's networks (`serving.remote_workers`).

        The pipeline is the engine's while it runs: painting with it elsewhere at the same time isn't supported. Raises
        `SettingError` for values out of range.
        """
        if on_oracle_failure not in ("policy", "accept", "regenerate", "refuse"):
            raise SettingError(f"on_oracle_failure={on_oracle_failure!r}: policy, accept, regenerate and refuse are known.")
        if oracle_timeout is not None and not oracle_timeout > 0:
            raise SettingError(f"oracle_timeout={oracle_timeout!r} must be above 0 seconds, or None.")
        self.limits, self.clock, self.controller = limits, clock, controller
        self._on_failure: OracleFailure = on_oracle_failure
        self._crew = workers
        self._oracle = None if pipe.oracle is None else GuardedOracle(pipe.oracle, oracle_timeout)
        own: Any = copy.copy(pipe)
        own.oracle = self._oracle
        self._machines, self._making = CascadeCache(own, limits.machines), threading.Lock()
        self._changed = threading.Condition()
        self._room: RequestQueue[InFlightRequest] = RequestQueue(limits.ageing)
        self._flying: list[InFlightRequest] = []
        self._open: dict[str, InFlightRequest] = {}
        """Every ticket that hasn't been told its end, by id."""
        self._gone: list[InFlightRequest] = []
        """Cancelled in the queue, to be told."""
        self._passed: dict[str, Mapping[Key, int]] = {}
        self._meter = Meter()
        self._threads: list[threading.Thread] = []
        self._draining = self._stopping = False

    def start(self) -> None:
        """Start the compute thread (and one for each painter that waits for a server). Raises `SettingError` if it was."""
        if self._threads or self._stopping:
            raise SettingError("an engine is started once: make another.")
        # A crew's jobs wait nowhere here, so one thread hands them all out.
        waiters = () if self._crew is not None else sorted(self._machines.waiters)
        for lane in (COMPUTE, *waiters):
            self._threads.append(threading.Thread(target=self._work, args=(str(lane),), name=f"engine {lane}", daemon=True))
        for thread in self._threads:
            thread.start()

    def submit(self, requests: Sequence[EngineRequest]) -> list[RequestHandle]:
        """Take all of them or none; one ticket each, in order. From any thread, also before `start`.

        Raises `SettingError` or `PromptError` for a request that can't be painted, `QueueFullError` (with `retry_after`)
        when there is no room now, `DrainingError` after `drain` or `stop`. It never waits for a network: it counts tokens,
        reads the pictures given, and the first time for new settings makes a machine for them (milliseconds).
        """
        items = [self._slot(request) for request in requests]
        with self._changed:
            if self._draining or self._stopping:
                self._meter.counts["refused"] += len(items)
                raise DrainingError("this server is about to stop and takes nothing new: ask another one.")
            self._check_room(items)
            self._room.add(items)
            self._open.update((item.handle.id, item) for item in items)
            self._meter.counts["accepted"] += len(items)
            self._changed.notify_all()
        return [item.handle for item in items]

    def go_on(self, run: StageRun) -> RequestHandle:
        """Take a job that was begun elsewhere through the stages of its run; its ticket ends with `HandedOver`.

        For engines that work for others, who have said who is let in. Raises `EngineStoppedError` or `DrainingError`.
        """
        with self._making:
            cascade_entry = self._machines.of(run.settings)
        job, now = run.job, self.clock()
        policy = AlwaysPolicy(Decision.ACCEPT) if job.policy is None else job.policy
        deadline = None if run.seconds_left is None else now + run.seconds_left
        entry = QueueEntry("", 0, deadline, now, 0.0, 0)
        handle = RequestHandle(EngineRequest(job.request, run.settings, policy), self._cancel)
        item = InFlightRequest(
            handle, cascade_entry, entry, job, job_bytes(job.request, run.settings), stages=RUNS[job.stage]
        )
        with self._changed:
            if self._draining or self._stopping:
                raise DrainingError("this worker is about to stop and takes nothing new: ask another one.")
            self._room.add([item])
            self._open[handle.id] = item
            self._changed.notify_all()
        return handle

    def _slot(self, request: EngineRequest) -> InFlightRequest:
        with self._making:
            cascade_entry = self._machines.of(request.settings)
        cascade_entry.cascade.check(request.request, request.policy)
        given, whole = given_bytes(request.request, request.settings), job_bytes(request.request, request.settings)
        if whole > self.limits.bytes:
            raise SettingError(
                f"a picture that takes {whole} bytes is more than the limit of {self.limits.bytes}: ask for less."
            )
        entry = QueueEntry(request.client, request.priority, request.deadline, self.clock(), work(request.settings), given)
        job = Job(request.request, when_unscored(request.policy, self._on_failure))
        return InFlightRequest(RequestHandle(request, self._cancel), cascade_entry, entry, job, whole)

    def _check_room(self, items: Sequence[InFlightRequest]) -> None:
        n, most = len(items), self.limits.queue
        if n > most:
            raise SettingError(f"{n} pictures at once are more than the queue of {most} can ever hold: ask for fewer.")
        held = self._held() + sum(item.entry.bytes for item in items)
        over = max(0, len(self._room) + n - most)
        if over or held > self.limits.bytes:
            self._meter.counts["refused"] += n
            what = f"{len(self._room)} of {most} places are taken" if over else f"{held} bytes would be held"
            raise QueueFullError(f"the queue is full ({what}): try again later.", self._meter.seconds_for(over or n))

    def _held(self) -> int:
        return self._room.bytes + sum(item.bytes for item in self._flying)

    def _cancel(self, handle: RequestHandle) -> None:
        with self._changed:
            item = self._open.get(handle.id)
            if item is None or item.closed:
                return
            item.cancelled = True
            if item not in self._flying:
                self._room.remove(item)
                item.closed = True
                self._gone.append(item)
            abandon = item.abandon if item.busy else None
            self._changed.notify_all()
        if abandon is not None:
            abandon()

    def drain(self, timeout: float | None = None) -> bool:
        """Take nothing new and wait until everything accepted has been told its end: True if that came within `timeout`.

        Whoever is refused gets `DrainingError`. There is no way back. Raises nothing; from a listener it would wait for
        itself.
        """
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: not self._open, timeout)

    def stop(self, timeout: float = 30.0) -> None:
        """End after the batches that are under way; tickets that aren't finished fail with `EngineStoppedError`. Idempotent.

        A batch that takes longer than `timeout` seconds (a server that doesn't answer) is left behind.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        until = time.monotonic() + timeout
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))
        if self._oracle is not None:
            self._oracle.close()
        if self._crew is not None:
            self._crew.close()
        self._end_all("the server was stopped before this picture was finished: ask again.")

    def _end_all(self, message: str, cause: BaseException | None = None) -> None:
        with self._changed:
            items = [item for item in self._open.values() if not item.closed]
            told = [(item, self._close(item, Failed(_because(EngineStoppedError(message), cause)))) for item in items]
            told += self._told_gone()
            self._room = RequestQueue(self.limits.ageing)
        self._tell(told)

    def snapshot(self) -> Snapshot:
        """What it holds and has done, now."""
        with self._changed:
            alive = any(t.is_alive() for t in self._threads) and not self._stopping
            return self._meter.snapshot(
                queued=len(self._room),
                in_flight=dict(Counter(str(item.job.stage) for item in self._flying)),
                held_bytes=self._held(),
                machines=len(self._machines),
                running=alive,
                draining=self._draining or self._stopping,
                oracle_timeouts=0 if self._oracle is None else self._oracle.timeouts,
                ceiling=None if self.controller is None else self.controller.ceiling,
                changes=() if self.controller is None else tuple(self.controller.trace),
            )

    def _work(self, lane: str) -> None:
        """A thread's life."""
        try:
            while self._turn(lane):
                pass
        except BaseException as e:
            # A bug of ours: better an error for everyone than callers that wait for ever.
            log.exception("the engine's thread %s died", lane)
            with self._changed:
                self._stopping = True
                self._changed.notify_all()
            self._end_all(f"the server's engine died ({type(e).__name__}: {e}): restart it.", e)

    def _turn(self, lane: str) -> bool:
        """Look around, take one batch a step further; False when it is time to end."""
        with self._changed:
            while True:
                if self._stopping:
                    return False
                woke = time.perf_counter()
                told = self._tidy()
                batch = self._next(lane)
                if told or batch:
                    break
                self._changed.wait(POLL_SECONDS)
        self._tell(told)
        inside = self._take(batch) if batch else 0.0
        with self._changed:
            self._meter.outside += time.perf_counter() - woke - inside
        return True

    def _tidy(self) -> list[PendingEvent]:
        """At a step boundary: let go of those who left and who are late, begin others; what is to be told."""
        now = self.clock()
        told = self._told_gone()
        for item in self._room.late(now):
            self._room.remove(item)
            told.append((item, self._close(item, _late("passed while it waited"))))
        for item in [s for s in self._flying if not s.busy]:
            if item.cancelled:
                told.append((item, self._close(item, Cancelled())))
            elif item.entry.deadline is not None and item.entry.deadline <= now:
                told.append((item, self._close(item, _late("passed while it was painted"))))
        told += self._begin(now)
        if self.controller is not None:
            change = self.controller.update(now, (now - item.entry.accepted for item in self._open.values()))
            if change is not None:
                log.info("thresholds: at most %s, before %s: %s", change.after, change.before, change.reason)
        return told

    def _told_gone(self) -> list[PendingEvent]:
        gone, self._gone = self._gone, []
        return [(item, self._close(item, Cancelled())) for item in gone]

    def _begin(self, now: float) -> list[PendingEvent]:
        """From the waiting room, as many as there is room for; those that can't make it any more aren't begun."""
        told: list[PendingEvent] = []
        while len(self._flying) < self.limits.in_flight:
            item = self._room.next(now)
            if item is None:
                break
            deadline = item.entry.deadline
            if (
                deadline is not None
                and now + item.cascade_entry.least_seconds(item.job.request, item.handle.request.policy) > deadline
            ):
                self._room.remove(item)
                told.append((item, self._close(item, _late("can't be met any more"))))
                continue
            if self._flying and self._held() - item.entry.bytes + item.bytes > self.limits.bytes:
                break
            self._room.serve(item)
            self._flying.append(item)
        return told

    def _next(self, lane: str) -> list[InFlightRequest]:
        """The batch that goes next in this lane; its slots are busy from now on."""
        ready: dict[Key, list[InFlightRequest]] = {}
        for item in self._flying:
            # A busy slot's job is the other thread's: not even its stage is looked at.
            if not item.busy and (self._crew is not None or item.cascade_entry.lane(item.job.stage) == lane):
                stage = item.job.stage
                ready.setdefault(
                    (item.cascade_entry, stage, item.job.student_index if stage is Stage.STUDENT else 0), []
                ).append(item)
        passed = self._passed.get(lane, {})
        groups = [
            BatchGroup(
                key, str(key[1]), len(items), self._rows(key[0]), min(s.entry.accepted for s in items), passed.get(key, 0)
            )
            for key, items in ready.items()
        ]
        chosen = choose(groups, self.limits.patience)
        self._passed[lane] = passed_after(groups, chosen)
        if chosen is None:
            return []
        items = ready[chosen]
        batch = [items[i] for i in oldest_first([s.entry.accepted for s in items], self._rows(chosen[0]))]
        for item in batch:
            item.busy = True
            if chosen[1] is Stage.SCORE:
                self._lower(item)
        return batch

    def _rows(self, cascade_entry: LoadedCascade) -> int:
        """Of a batch; to a crew jobs go one by one, and it makes batches of them."""
        return cascade_entry.size if self._crew is None else 1

    def _lower(self, item: InFlightRequest) -> None:
        """Before its first draft is decided about: under load by a lower threshold, which it keeps for later drafts.

        Here, under the lock, because another lane may move the ceiling between a decision and the account of it.
        """
        request = item.handle.request
        if self.controller is not None and request.adjustable and item.job.attempts == 0:
            item.job.policy = when_unscored(self.controller.lowered(request.policy), self._on_failure)

    def _take(self, batch: Sequence[InFlightRequest]) -> float:
        """One call of the machine, and what follows from it; the seconds of the call."""
        cascade_entry, stage = batch[0].cascade_entry, batch[0].job.stage
        counted = [item.job.steps or 0 for item in batch]
        if stage is Stage.NEW:
            for item in batch:
                item.handle.tell(Started())
        if self._crew is not None:
            for item in batch:
                self._send(self._crew, item)
            return 0.0
        begun, by_clock = time.perf_counter(), self.clock()
        wrong, again = act(cascade_entry, stage, batch)
        seconds, by_clock = time.perf_counter() - begun, self.clock() - by_clock
        for item, before in zip(batch, counted, strict=True):
            if stage in (Stage.STUDENT, Stage.TEACHER):
                item.steps[str(stage)] += 1 if item.job.steps is None else item.job.steps - before
            message = None if item in wrong else unsound(item.job, stage)
            if message is not None:
                wrong[item] = ArithmeticError(message)
            item.share.batch(stage, len(batch), cascade_entry.size, seconds)
        with self._changed:
            self._meter.batch(stage, len(batch), cascade_entry.size, seconds)
            self._meter.counts["retried"] += again
            cascade_entry.took(stage, by_clock)  # Whether a deadline can be met is told in the deadlines' seconds.
        self._settle(batch, stage, wrong)
        return seconds

    def _send(self, workers: RemoteWorkers, item: InFlightRequest) -> None:
        """To the crew; it is busy until it comes back."""
        stage, deadline = item.job.stage, item.entry.deadline
        left = None if deadline is None else deadline - self.clock()
        run = StageRun(item.job, item.cascade_entry.cascade.settings, left)
        abandon = workers.run(run, lambda back: self._back(item, stage, back))
        with self._changed:
            item.abandon = abandon
            cancelled = item.cancelled
        if cancelled:
            abandon()

    def _back(self, item: InFlightRequest, stage: Stage, back: Back) -> None:
        """From the crew, in its thread."""
        with self._changed:
            if isinstance(back, HandedOver) and not item.closed:
                adopt(item.job, back.job)
                item.steps.update(back.steps)
                self._meter.elsewhere(back.share)
                for name, calls in back.share.calls.items():
                    item.cascade_entry.took(Stage(name), back.share.longest[name] / calls)
        if back is None:
            with self._changed:
                item.busy = False
                self._changed.notify_all()
        else:
            self._settle([item], stage, {item: back} if isinstance(back, Exception) else {})

    def _settle(self, batch: Sequence[InFlightRequest], stage: Stage, wrong: Mapping[InFlightRequest, Exception]) -> None:
        """What follows from a call, told; its jobs are free for the next."""
        with self._changed:
            told = [(item, event) for item in batch for event in self._events(item, stage, wrong.get(item))]
        self._tell(told)
        with self._changed:
            for item in batch:
                item.busy = False
            self._changed.notify_all()

    def _events(self, item: InFlightRequest, stage: Stage, wrong: Exception | None) -> list[Event]:
        """What there is to tell after a call."""
        job = item.job
        if item.closed:
            return []
        if isinstance(wrong, ServingError):
            return [self._close(item, Failed(wrong))]
        if wrong is not None:
            message = f"this picture failed, others are not touched: {type(wrong).__name__}: {wrong}"
            return [self._close(item, Failed(_because(PictureFailedError(message), wrong)))]
        events: list[Event] = []
        failed = unscored(job, stage, self._oracle is not None)
        self._meter.counts["oracle_failures"] += failed
        if stage is Stage.SCORE:
            if failed and self._on_failure == "refuse" and judges(item.handle.request.policy):
                message = f"the oracle gave no score, and drafts without one are refused: {job.warning or job.score}"
                return [self._close(item, Failed(PictureFailedError(message)))]
            events.append(draft_of(job))
        if item.stages is not None:
            if job.stage not in item.stages:
                events.append(self._close(item, HandedOver(job, item.steps, item.share)))
        elif job.stage is Stage.DONE:
            events.append(self._close(item, self._end(item)))
        return events

    def _end(self, item: InFlightRequest) -> Event:
        job, settings = item.job, item.handle.request.settings
        if job.image is None:
            return Failed(PictureFailedError(job.error or "there is no picture, and no reason was given"))
        result = result_of(settings, job)
        self._meter.finished(result, item.steps)
        if self.controller is not None:
            now = self.clock()
            self.controller.observe(now, now - item.entry.accepted)
        return Finished(result)

    def _close(self, item: InFlightRequest, event: Event) -> Event:
        """Decide its end, under the lock; the event that says so."""
        item.closed = True
        if item in self._flying:
            self._flying.remove(item)
        if isinstance(event, Failed):
            self._meter.counts["failed"] += 1
            self._meter.counts["expired"] += isinstance(event.error, DeadlinePassedError)
        elif isinstance(event, Cancelled):
            self._meter.counts["cancelled"] += 1
        return event

    def _tell(self, told: Iterable[PendingEvent]) -> None:
        """Outside the lock: listeners may call the engine."""
        ended: list[str] = []
        for item, event in told:
            item.handle.tell(event)
            if isinstance(event, LAST):
                ended.append(item.handle.id)
        if ended:
            with self._changed:
                for name in ended:
                    del self._open[name]
                self._changed.notify_all()


def _late(message: str) -> Failed:
    return Failed(DeadlinePassedError(f"the deadline {message}: allow for more, or ask when there is less to do."))


def _because(error: Exception, cause: BaseException | None) -> Exception:
    error.__cause__ = cause
    return error
