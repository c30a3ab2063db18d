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
from allaprima.cascade.run import result_of
from allaprima.core.errors import (
    DeadlinePassed,
    Draining,
    EngineStopped,
    PictureFailed,
    QueueFull,
    ServingError,
    SettingError,
)
from allaprima.pipeline import AdaptivePipeline
from allaprima.serving.admission import EngineLimits, Place, WaitingRoom, given_bytes, job_bytes, work
from allaprima.serving.controller import Controller
from allaprima.serving.crew import RUNS, Back, Crew, StageRun, adopt
from allaprima.serving.machines import COMPUTE, Bench, Machines
from allaprima.serving.oracle_guard import OracleFailure, Watched, judges, when_unscored
from allaprima.serving.schedule import Group, choose, oldest_first, passed_after
from allaprima.serving.slot import Slot, act, draft_of, unscored, unsound
from allaprima.serving.snapshot import Meter, Snapshot
from allaprima.serving.ticket import LAST, Ask, Cancelled, Event, Failed, Finished, Handed, Started, Ticket

log = logging.getLogger(__name__)
Key = tuple[Bench, Stage, int]
"""What a batch has in common: machine, stage, student."""
Told = tuple[Slot, Event]
LOOK = 0.25
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
        crew: Crew | None = None,
    ) -> None:
        """`clock`: the seconds of deadlines. `controller`: moves thresholds of asks that are `adjustable`.

        `on_oracle_failure`: what becomes of a draft that the oracle gave no number for, where its policy goes by scores:
        `policy` what the policy says of nan, `accept`, `regenerate`, or `refuse` (the request fails). `oracle_timeout`:
        seconds after which a call of the oracle is given up, a failure like any other; None waits for ever. `crew`: who
        takes jobs through their stages in place of this process's networks (`serving.crew`).

        The pipeline is the engine's while it runs: painting with it elsewhere at the same time isn't supported. Raises
        `SettingError` for values out of range.
        """
        if on_oracle_failure not in ("policy", "accept", "regenerate", "refuse"):
            raise SettingError(f"on_oracle_failure={on_oracle_failure!r}: policy, accept, regenerate and refuse are known.")
        if oracle_timeout is not None and not oracle_timeout > 0:
            raise SettingError(f"oracle_timeout={oracle_timeout!r} must be above 0 seconds, or None.")
        self.limits, self.clock, self.controller = limits, clock, controller
        self._on_failure: OracleFailure = on_oracle_failure
        self._crew = crew
        self._oracle = None if pipe.oracle is None else Watched(pipe.oracle, oracle_timeout)
        own: Any = copy.copy(pipe)
        own.oracle = self._oracle
        self._machines, self._making = Machines(own, limits.machines), threading.Lock()
        self._changed = threading.Condition()
        self._room: WaitingRoom[Slot] = WaitingRoom(limits.ageing)
        self._flying: list[Slot] = []
        self._open: dict[str, Slot] = {}
        """Every ticket that hasn't been told its end, by id."""
        self._gone: list[Slot] = []
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

    def submit(self, asks: Sequence[Ask]) -> list[Ticket]:
        """Take all of them or none; one ticket each, in order. From any thread, also before `start`.

        Raises `SettingError` or `PromptError` for a request that can't be painted, `QueueFull` (with `retry_after`) when
        there is no room now, `Draining` after `drain` or `stop`. It never waits for a network: it counts tokens, reads the
        pictures given, and the first time for new settings makes a machine for them (milliseconds).
        """
        slots = [self._slot(ask) for ask in asks]
        with self._changed:
            if self._draining or self._stopping:
                self._meter.counts["refused"] += len(slots)
                raise Draining("this server is about to stop and takes nothing new: ask another one.")
            self._check_room(slots)
            self._room.add(slots)
            self._open.update((slot.ticket.id, slot) for slot in slots)
            self._meter.counts["accepted"] += len(slots)
            self._changed.notify_all()
        return [slot.ticket for slot in slots]

    def go_on(self, run: StageRun) -> Ticket:
        """Take a job that was begun elsewhere through the stages of its run; its ticket ends with `Handed`.

        For engines that work for others, who have said who is let in. Raises `EngineStopped` or `Draining`.
        """
        with self._making:
            bench = self._machines.of(run.settings)
        job, now = run.job, self.clock()
        policy = AlwaysPolicy(Decision.ACCEPT) if job.policy is None else job.policy
        deadline = None if run.seconds_left is None else now + run.seconds_left
        place = Place("", 0, deadline, now, 0.0, 0)
        ticket = Ticket(Ask(job.request, run.settings, policy), self._cancel)
        slot = Slot(ticket, bench, place, job, job_bytes(job.request, run.settings), stages=RUNS[job.stage])
        with self._changed:
            if self._draining or self._stopping:
                raise Draining("this worker is about to stop and takes nothing new: ask another one.")
            self._room.add([slot])
            self._open[ticket.id] = slot
            self._changed.notify_all()
        return ticket

    def _slot(self, ask: Ask) -> Slot:
        with self._making:
            bench = self._machines.of(ask.settings)
        bench.machine.check(ask.request, ask.policy)
        given, whole = given_bytes(ask.request, ask.settings), job_bytes(ask.request, ask.settings)
        if whole > self.limits.bytes:
            raise SettingError(
                f"a picture that takes {whole} bytes is more than the limit of {self.limits.bytes}: ask for less."
            )
        place = Place(ask.client, ask.priority, ask.deadline, self.clock(), work(ask.settings), given)
        job = Job(ask.request, when_unscored(ask.policy, self._on_failure))
        return Slot(Ticket(ask, self._cancel), bench, place, job, whole)

    def _check_room(self, slots: Sequence[Slot]) -> None:
        n, most = len(slots), self.limits.queue
        if n > most:
            raise SettingError(f"{n} pictures at once are more than the queue of {most} can ever hold: ask for fewer.")
        held = self._held() + sum(slot.place.bytes for slot in slots)
        over = max(0, len(self._room) + n - most)
        if over or held > self.limits.bytes:
            self._meter.counts["refused"] += n
            what = f"{len(self._room)} of {most} places are taken" if over else f"{held} bytes would be held"
            raise QueueFull(f"the queue is full ({what}): try again later.", self._meter.seconds_for(over or n))

    def _held(self) -> int:
        return self._room.bytes + sum(slot.bytes for slot in self._flying)

    def _cancel(self, ticket: Ticket) -> None:
        with self._changed:
            slot = self._open.get(ticket.id)
            if slot is None or slot.closed:
                return
            slot.cancelled = True
            if slot not in self._flying:
                self._room.remove(slot)
                slot.closed = True
                self._gone.append(slot)
            abandon = slot.abandon if slot.busy else None
            self._changed.notify_all()
        if abandon is not None:
            abandon()

    def drain(self, timeout: float | None = None) -> bool:
        """Take nothing new and wait until everything accepted has been told its end: True if that came within `timeout`.

        Whoever is refused gets `Draining`. There is no way back. Raises nothing; from a listener it would wait for itself.
        """
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: not self._open, timeout)

    def stop(self, timeout: float = 30.0) -> None:
        """End after the batches that are under way; tickets that aren't finished fail with `EngineStopped`. Idempotent.

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

    def _end_all(self, words: str, cause: BaseException | None = None) -> None:
        with self._changed:
            slots = [slot for slot in self._open.values() if not slot.closed]
            told = [(slot, self._close(slot, Failed(_because(EngineStopped(words), cause)))) for slot in slots]
            told += self._told_gone()
            self._room = WaitingRoom(self.limits.ageing)
        self._tell(told)

    def snapshot(self) -> Snapshot:
        """What it holds and has done, now."""
        with self._changed:
            alive = any(t.is_alive() for t in self._threads) and not self._stopping
            return self._meter.snapshot(
                queued=len(self._room),
                in_flight=dict(Counter(str(slot.job.stage) for slot in self._flying)),
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
                self._changed.wait(LOOK)
        self._tell(told)
        inside = self._take(batch) if batch else 0.0
        with self._changed:
            self._meter.outside += time.perf_counter() - woke - inside
        return True

    def _tidy(self) -> list[Told]:
        """At a step boundary: let go of those who left and who are late, begin others; what is to be told."""
        now = self.clock()
        told = self._told_gone()
        for slot in self._room.late(now):
            self._room.remove(slot)
            told.append((slot, self._close(slot, _late("passed while it waited"))))
        for slot in [s for s in self._flying if not s.busy]:
            if slot.cancelled:
                told.append((slot, self._close(slot, Cancelled())))
            elif slot.place.deadline is not None and slot.place.deadline <= now:
                told.append((slot, self._close(slot, _late("passed while it was painted"))))
        told += self._begin(now)
        if self.controller is not None:
            change = self.controller.update(now, (now - slot.place.accepted for slot in self._open.values()))
            if change is not None:
                log.info("thresholds: at most %s, before %s: %s", change.after, change.before, change.reason)
        return told

    def _told_gone(self) -> list[Told]:
        gone, self._gone = self._gone, []
        return [(slot, self._close(slot, Cancelled())) for slot in gone]

    def _begin(self, now: float) -> list[Told]:
        """From the waiting room, as many as there is room for; those that can't make it any more aren't begun."""
        told: list[Told] = []
        while len(self._flying) < self.limits.in_flight:
            slot = self._room.next(now)
            if slot is None:
                break
            deadline = slot.place.deadline
            if deadline is not None and now + slot.bench.least_seconds(slot.job.request, slot.ticket.ask.policy) > deadline:
                self._room.remove(slot)
                told.append((slot, self._close(slot, _late("can't be met any more"))))
                continue
            if self._flying and self._held() - slot.place.bytes + slot.bytes > self.limits.bytes:
                break
            self._room.serve(slot)
            self._flying.append(slot)
        return told

    def _next(self, lane: str) -> list[Slot]:
        """The batch that goes next in this lane; its slots are busy from now on."""
        ready: dict[Key, list[Slot]] = {}
        for slot in self._flying:
            # A busy slot's job is the other thread's: not even its stage is looked at.
            if not slot.busy and (self._crew is not None or slot.bench.lane(slot.job.stage) == lane):
                stage = slot.job.stage
                ready.setdefault((slot.bench, stage, slot.job.route if stage is Stage.STUDENT else 0), []).append(slot)
        passed = self._passed.get(lane, {})
        groups = [
            Group(key, str(key[1]), len(slots), self._rows(key[0]), min(s.place.accepted for s in slots), passed.get(key, 0))
            for key, slots in ready.items()
        ]
        chosen = choose(groups, self.limits.patience)
        self._passed[lane] = passed_after(groups, chosen)
        if chosen is None:
            return []
        slots = ready[chosen]
        batch = [slots[i] for i in oldest_first([s.place.accepted for s in slots], self._rows(chosen[0]))]
        for slot in batch:
            slot.busy = True
            if chosen[1] is Stage.SCORE:
                self._lower(slot)
        return batch

    def _rows(self, bench: Bench) -> int:
        """Of a batch; to a crew jobs go one by one, and it makes batches of them."""
        return bench.size if self._crew is None else 1

    def _lower(self, slot: Slot) -> None:
        """Before its first draft is decided about: under load by a lower threshold, which it keeps for later drafts.

        Here, under the lock, because another lane may move the ceiling between a decision and the account of it.
        """
        ask = slot.ticket.ask
        if self.controller is not None and ask.adjustable and slot.job.attempts == 0:
            slot.job.policy = when_unscored(self.controller.lowered(ask.policy), self._on_failure)

    def _take(self, batch: Sequence[Slot]) -> float:
        """One call of the machine, and what follows from it; the seconds of the call."""
        bench, stage = batch[0].bench, batch[0].job.stage
        counted = [slot.job.steps or 0 for slot in batch]
        if stage is Stage.NEW:
            for slot in batch:
                slot.ticket.tell(Started())
        if self._crew is not None:
            for slot in batch:
                self._send(self._crew, slot)
            return 0.0
        begun, by_clock = time.perf_counter(), self.clock()
        wrong, again = act(bench, stage, batch)
        seconds, by_clock = time.perf_counter() - begun, self.clock() - by_clock
        for slot, before in zip(batch, counted, strict=True):
            if stage in (Stage.STUDENT, Stage.TEACHER):
                slot.steps[str(stage)] += 1 if slot.job.steps is None else slot.job.steps - before
            words = None if slot in wrong else unsound(slot.job, stage)
            if words is not None:
                wrong[slot] = ArithmeticError(words)
            slot.share.batch(stage, len(batch), bench.size, seconds)
        with self._changed:
            self._meter.batch(stage, len(batch), bench.size, seconds)
            self._meter.counts["retried"] += again
            bench.took(stage, by_clock)  # Whether a deadline can be met is told in the deadlines' seconds.
        self._settle(batch, stage, wrong)
        return seconds

    def _send(self, crew: Crew, slot: Slot) -> None:
        """To the crew; it is busy until it comes back."""
        stage, deadline = slot.job.stage, slot.place.deadline
        left = None if deadline is None else deadline - self.clock()
        run = StageRun(slot.job, slot.bench.machine.settings, left)
        abandon = crew.run(run, lambda back: self._back(slot, stage, back))
        with self._changed:
            slot.abandon = abandon
            cancelled = slot.cancelled
        if cancelled:
            abandon()

    def _back(self, slot: Slot, stage: Stage, back: Back) -> None:
        """From the crew, in its thread."""
        with self._changed:
            if isinstance(back, Handed) and not slot.closed:
                adopt(slot.job, back.job)
                slot.steps.update(back.steps)
                self._meter.elsewhere(back.share)
                for name, calls in back.share.calls.items():
                    slot.bench.took(Stage(name), back.share.longest[name] / calls)
        if back is None:
            with self._changed:
                slot.busy = False
                self._changed.notify_all()
        else:
            self._settle([slot], stage, {slot: back} if isinstance(back, Exception) else {})

    def _settle(self, batch: Sequence[Slot], stage: Stage, wrong: Mapping[Slot, Exception]) -> None:
        """What follows from a call, told; its jobs are free for the next."""
        with self._changed:
            told = [(slot, event) for slot in batch for event in self._events(slot, stage, wrong.get(slot))]
        self._tell(told)
        with self._changed:
            for slot in batch:
                slot.busy = False
            self._changed.notify_all()

    def _events(self, slot: Slot, stage: Stage, wrong: Exception | None) -> list[Event]:
        """What there is to tell after a call."""
        job = slot.job
        if slot.closed:
            return []
        if isinstance(wrong, ServingError):
            return [self._close(slot, Failed(wrong))]
        if wrong is not None:
            words = f"this picture failed, others are not touched: {type(wrong).__name__}: {wrong}"
            return [self._close(slot, Failed(_because(PictureFailed(words), wrong)))]
        events: list[Event] = []
        failed = unscored(job, stage, self._oracle is not None)
        self._meter.counts["oracle_failures"] += failed
        if stage is Stage.SCORE:
            if failed and self._on_failure == "refuse" and judges(slot.ticket.ask.policy):
                words = f"the oracle gave no score, and drafts without one are refused: {job.warning or job.score}"
                return [self._close(slot, Failed(PictureFailed(words)))]
            events.append(draft_of(job))
        if slot.stages is not None:
            if job.stage not in slot.stages:
                events.append(self._close(slot, Handed(job, slot.steps, slot.share)))
        elif job.stage is Stage.DONE:
            events.append(self._close(slot, self._end(slot)))
        return events

    def _end(self, slot: Slot) -> Event:
        job, settings = slot.job, slot.ticket.ask.settings
        if job.image is None:
            return Failed(PictureFailed(job.error or "there is no picture, and no reason was given"))
        result = result_of(settings, job)
        self._meter.finished(result, slot.steps)
        if self.controller is not None:
            now = self.clock()
            self.controller.observe(now, now - slot.place.accepted)
        return Finished(result)

    def _close(self, slot: Slot, event: Event) -> Event:
        """Decide its end, under the lock; the event that says so."""
        slot.closed = True
        if slot in self._flying:
            self._flying.remove(slot)
        if isinstance(event, Failed):
            self._meter.counts["failed"] += 1
            self._meter.counts["expired"] += isinstance(event.error, DeadlinePassed)
        elif isinstance(event, Cancelled):
            self._meter.counts["cancelled"] += 1
        return event

    def _tell(self, told: Iterable[Told]) -> None:
        """Outside the lock: listeners may call the engine."""
        ended: list[str] = []
        for slot, event in told:
            slot.ticket.tell(event)
            if isinstance(event, LAST):
                ended.append(slot.ticket.id)
        if ended:
            with self._changed:
                for name in ended:
                    del self._open[name]
                self._changed.notify_all()


def _late(words: str) -> Failed:
    return Failed(DeadlinePassed(f"the deadline {words}: allow for more, or ask when there is less to do."))


def _because(error: Exception, cause: BaseException | None) -> Exception:
    error.__cause__ = cause
    return error
