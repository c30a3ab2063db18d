"""The engine: the cascade in a loop, for many callers at once.

One compute thread takes a batch a step further, looks who came, who left and who is late, chooses the next batch
(`serving.scheduler`), and so on. A request joins its student's batch at the next step, whatever steps the others are at;
escalated jobs of many requests share the teacher's. Batches have one shape, padded, and every noise belongs to its seed, so
an image is to the byte the one that `AdaptivePipeline` generates alone with the same settings and threshold.

    submit -> queue -> NEW -> STUDENT.. -> SCORE -> (TEACHER.. -> DECODE (-> RECHECK)) -> DONE -> handle

What ends a request is decided under the lock, once (`serving.output_processor`); listeners are called outside of it.
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
from allaprima.cascade.runner import act_isolated
from allaprima.core.errors import DrainingError, EngineStoppedError, SettingError
from allaprima.pipeline import AdaptivePipeline
from allaprima.serving.controller import Controller
from allaprima.serving.handle import LAST, EngineRequest, Failed, HandedOver, RequestHandle, Started
from allaprima.serving.in_flight import InFlightRequest, given_bytes, job_bytes, work
from allaprima.serving.loaded_cascade import COMPUTE, CascadeCache
from allaprima.serving.oracle_guard import GuardedOracle, OracleFailure, when_unscored
from allaprima.serving.output_processor import OutputProcessor, because, unsound
from allaprima.serving.queue import EngineLimits
from allaprima.serving.remote_workers import RUNS, Back, RemoteWorkers, StageRun, adopt
from allaprima.serving.scheduler import PendingEvent, Scheduler
from allaprima.serving.snapshot import Meter, Snapshot

log = logging.getLogger(__name__)
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
        """`clock`: the seconds of deadlines. `controller`: moves thresholds of requests that are `adjustable`.

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
        self._workers = workers
        self._oracle = None if pipe.oracle is None else GuardedOracle(pipe.oracle, oracle_timeout)
        guarded: Any = copy.copy(pipe)
        guarded.oracle = self._oracle
        self._cascades, self._cascades_lock = CascadeCache(guarded, limits.cascades), threading.Lock()
        self._changed = threading.Condition()
        self._meter = Meter()
        self._scheduler = Scheduler(limits, self._meter, remote=workers is not None)
        self._outputs = OutputProcessor(self._scheduler, controller, clock, on_oracle_failure, pipe.oracle is not None)
        self._threads: list[threading.Thread] = []
        self._draining = self._stopping = False

    def start(self) -> None:
        """Start the compute thread (and one for each painter that waits for a server). Raises `SettingError` if it was."""
        if self._threads or self._stopping:
            raise SettingError("an engine is started once: make another.")
        # Remote workers' jobs wait nowhere here, so one thread hands them all out.
        waiters = () if self._workers is not None else sorted(self._cascades.waiters)
        for lane in (COMPUTE, *waiters):
            self._threads.append(threading.Thread(target=self._work, args=(str(lane),), name=f"engine {lane}", daemon=True))
        for thread in self._threads:
            thread.start()

    def submit(self, requests: Sequence[EngineRequest]) -> list[RequestHandle]:
        """Take all of them or none; one handle each, in order. From any thread, also before `start`.

        Raises `SettingError` or `PromptError` for a request that can't be painted, `QueueFullError` (with `retry_after`)
        when there is no room now, `DrainingError` after `drain` or `stop`. It never waits for a network: it counts tokens,
        reads the pictures given, and the first time for new settings makes a cascade for them (milliseconds).
        """
        items = [self._prepare(request) for request in requests]
        with self._changed:
            if self._draining or self._stopping:
                self._meter.counts["refused"] += len(items)
                raise DrainingError("this server is about to stop and takes nothing new: ask another one.")
            self._scheduler.check_room(items)
            self._scheduler.add(items)
            self._meter.counts["accepted"] += len(items)
            self._changed.notify_all()
        return [item.handle for item in items]

    def _prepare(self, request: EngineRequest) -> InFlightRequest:
        with self._cascades_lock:
            loaded = self._cascades.of(request.settings)
        loaded.cascade.check(request.request, request.policy)
        held = job_bytes(request.request, request.settings)
        if held > self.limits.bytes:
            raise SettingError(
                f"a picture that takes {held} bytes is more than the limit of {self.limits.bytes}: ask for less."
            )
        job = Job(request.request, when_unscored(request.policy, self._on_failure))
        handle, queued = RequestHandle(request, self._cancel), given_bytes(request.request, request.settings)
        return InFlightRequest(handle, loaded, job, self.clock(), held, queued, work(request.settings))

    def go_on(self, run: StageRun) -> RequestHandle:
        """Take a job that was begun elsewhere through the stages of its run; its handle ends with `HandedOver`.

        For engines that work for others, who have said who is let in. Raises `EngineStoppedError` or `DrainingError`.
        """
        with self._cascades_lock:
            loaded = self._cascades.of(run.settings)
        job, now = run.job, self.clock()
        policy = AlwaysPolicy(Decision.ACCEPT) if job.policy is None else job.policy
        deadline = None if run.seconds_left is None else now + run.seconds_left
        handle = RequestHandle(EngineRequest(job.request, run.settings, policy, deadline=deadline), self._cancel)
        item = InFlightRequest(handle, loaded, job, now, job_bytes(job.request, run.settings), stages=RUNS[job.stage])
        with self._changed:
            if self._draining or self._stopping:
                raise DrainingError("this worker is about to stop and takes nothing new: ask another one.")
            self._scheduler.add([item])
            self._changed.notify_all()
        return handle

    def _cancel(self, handle: RequestHandle) -> None:
        with self._changed:
            item = self._scheduler.requests.get(handle.id)
            if item is None or item.closed:
                return
            self._scheduler.cancel(item)
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
            return self._changed.wait_for(lambda: not self._scheduler.requests, timeout)

    def stop(self, timeout: float = 30.0) -> None:
        """End after the batches that are under way; requests that aren't finished fail with `EngineStoppedError`.

        A batch that takes longer than `timeout` seconds (a server that does not answer) is left behind. Idempotent.
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
        if self._workers is not None:
            self._workers.close()
        self._end_all("the server was stopped before this picture was finished: ask again.")

    def _end_all(self, message: str, cause: BaseException | None = None) -> None:
        with self._changed:
            left = [item for item in self._scheduler.requests.values() if not item.closed]
            told = self._scheduler.take_cancelled()
            told += [self._scheduler.finish(i, Failed(because(EngineStoppedError(message), cause))) for i in left]
        self._tell(told)

    def snapshot(self) -> Snapshot:
        """Return what it holds and has done, now."""
        with self._changed:
            alive = any(t.is_alive() for t in self._threads) and not self._stopping
            return self._meter.snapshot(
                queued=len(self._scheduler.queue),
                in_flight=dict(Counter(str(item.job.stage) for item in self._scheduler.running)),
                held_bytes=self._scheduler.held_bytes,
                cascades=len(self._cascades),
                running=alive,
                draining=self._draining or self._stopping,
                oracle_timeouts=0 if self._oracle is None else self._oracle.timeouts,
                ceiling=None if self.controller is None else self.controller.ceiling,
                changes=() if self.controller is None else tuple(self.controller.trace),
            )

    def _work(self, lane: str) -> None:
        """Live a thread's life."""
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
                told = self._update()
                batch = self._scheduler.next_batch(lane)
                if told or batch:
                    break
                self._changed.wait(POLL_SECONDS)
            for item in batch:
                self._lower_threshold(item)
        self._tell(told)
        inside = self._call(batch) if batch else 0.0
        with self._changed:
            self._meter.outside += time.perf_counter() - woke - inside
        return True

    def _update(self) -> list[PendingEvent]:
        """At a step boundary: let the scheduler end and begin requests, and the controller move thresholds."""
        now = self.clock()
        told = self._scheduler.update(now)
        if self.controller is not None:
            change = self.controller.update(now, (now - item.accepted for item in self._scheduler.requests.values()))
            if change is not None:
                log.info("thresholds: at most %s, before %s: %s", change.after, change.before, change.reason)
        return told

    def _lower_threshold(self, item: InFlightRequest) -> None:
        """Lower the threshold under load before a first draft is decided about; later drafts keep it.

        Here, under the lock, because another lane may move the ceiling between a decision and the account of it.
        """
        request, first = item.handle.request, item.job.stage is Stage.SCORE and item.job.draft is None
        if self.controller is not None and request.adjustable and first:
            item.job.policy = when_unscored(self.controller.lowered(request.policy), self._on_failure)

    def _call(self, batch: Sequence[InFlightRequest]) -> float:
        """Call the cascade for a batch, and tell what follows from it; return the seconds of the call."""
        loaded, stage = batch[0].loaded, batch[0].job.stage
        counted = [item.job.steps or 0 for item in batch]
        if stage is Stage.NEW:
            for item in batch:
                item.handle.tell(Started())
        if self._workers is not None:
            for item in batch:
                self._send(self._workers, item)
            return 0.0
        started, by_clock = time.perf_counter(), self.clock()
        failures, again = act_isolated(loaded.cascade, stage, [item.job for item in batch])
        errors = {batch[i]: e for i, e in failures.items()}
        seconds, by_clock = time.perf_counter() - started, self.clock() - by_clock
        for item, before in zip(batch, counted, strict=True):
            if stage in (Stage.STUDENT, Stage.TEACHER):
                item.steps[str(stage)] += 1 if item.job.steps is None else item.job.steps - before
            message = None if item in errors else unsound(item.job, stage)
            if message is not None:
                errors[item] = ArithmeticError(message)
            item.share.batch(stage, len(batch), loaded.size, seconds)
        with self._changed:
            self._meter.batch(stage, len(batch), loaded.size, seconds)
            self._meter.counts["retried"] += again
            loaded.took(stage, by_clock)  # Whether a deadline can be met is told in the deadlines' seconds.
        self._settle(batch, stage, errors)
        return seconds

    def _send(self, workers: RemoteWorkers, item: InFlightRequest) -> None:
        """Send a request to a worker; it is busy until it comes back."""
        stage, deadline = item.job.stage, item.handle.request.deadline
        left = None if deadline is None else deadline - self.clock()
        run = StageRun(item.job, item.loaded.cascade.settings, left)
        abandon = workers.run(run, lambda back: self._back(item, stage, back))
        with self._changed:
            item.abandon = abandon
            cancelled = item.cancelled
        if cancelled:
            abandon()

    def _back(self, item: InFlightRequest, stage: Stage, back: Back) -> None:
        """Take a request back from a worker, in its thread."""
        with self._changed:
            if isinstance(back, HandedOver) and not item.closed:
                adopt(item.job, back.job)
                item.steps.update(back.steps)
                self._meter.elsewhere(back.share)
                for name, calls in back.share.calls.items():
                    item.loaded.took(Stage(name), back.share.longest[name] / calls)
        if back is None:
            with self._changed:
                item.busy = False
                self._changed.notify_all()
        else:
            self._settle([item], stage, {item: back} if isinstance(back, Exception) else {})

    def _settle(self, batch: Sequence[InFlightRequest], stage: Stage, errors: Mapping[InFlightRequest, Exception]) -> None:
        """Tell what follows from a call; its jobs are free for the next."""
        with self._changed:
            told = [pair for item in batch for pair in self._outputs.process(item, stage, errors.get(item))]
        self._tell(told)
        with self._changed:
            for item in batch:
                item.busy = False
            self._changed.notify_all()

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
                    del self._scheduler.requests[name]
                self._changed.notify_all()
