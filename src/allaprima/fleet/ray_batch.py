"""Pictures by the million: requests in chunks to workers of a Ray cluster, results as they come.

Each worker loads the pipeline once and paints a chunk as `AdaptivePipeline.stream` does, so a picture has the bytes that it
has in one process. Requests are read when a worker is about to be free: a few chunks a worker are in memory, never all.

A chunk that a worker died over is asked again of others; results of a chunk come together or not at all, so nothing is lost
and nothing comes twice. A chunk that keeps killing workers is halved until the request that does it is found: that one gets
a result with an error.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from allaprima.cascade.job import Job
from allaprima.cascade.policy import Policy
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.result import Result
from allaprima.cascade.runner import result_of
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import ModelError, SettingError
from allaprima.fleet.ray_cluster import LOST, check_room, load_ray
from allaprima.pipeline import AdaptivePipeline

T = TypeVar("T")
Item = tuple[GenerationRequest, str]
"""A request, and what whoever packs its result wants to know beside it."""
QUEUED = 2
"""Chunks a worker: one that it paints, one that it finds when that is done."""
TRIES = 2
"""Workers that may die over a chunk before it is halved."""


@dataclass(frozen=True)
class BatchWork(Generic[T]):
    """What every worker does. It travels by pickle: functions of modules that workers can import, and plain data."""

    make: Callable[[], AdaptivePipeline]
    """Makes the pipeline, once a worker and there."""
    settings: CascadeSettings
    policy: Policy
    pack: Callable[[Result, str], T]
    """What becomes of a result before it travels (there, not here: encoding pictures takes its time)."""
    fingerprints: Mapping[str, str]
    """Those that a worker's pipeline must have."""
    threads: int = 1
    """Torch's in each worker; bits follow from them."""


@dataclass(frozen=True)
class WorkerConfig:
    """Who does it. Raises `SettingError` for values out of range."""

    workers: int = 2
    chunk: int = 64
    """Requests that travel together; several batches, so that what falls short fills the teacher's."""
    cpus: float = 1.0
    """Of Ray's places, a worker."""
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= 10_000:
            raise SettingError(f"workers={self.workers!r} is out of range: 1..10000.")
        if self.chunk < 1 or self.cpus < 0 or self.gpus < 0:
            raise SettingError(f"chunk={self.chunk!r}, cpus={self.cpus!r}, gpus={self.gpus!r}: 1 or more, and 0 or more.")


class BatchWorker(Generic[T]):
    """A worker."""

    def __init__(self, work: BatchWork[T]) -> None:
        torch.set_num_threads(work.threads)
        self._work, self._pipe = work, None

    def load(self) -> int:
        """Make the pipeline; the process's id. Raises `ModelError` for one with other fingerprints than the driver's."""
        self._pipe = self._work.make()
        check_same(self._work.fingerprints, self._pipe)
        return os.getpid()

    def paint(self, items: Sequence[Item]) -> list[T]:
        """Return the packed results of a chunk."""
        assert self._pipe is not None
        beside = {request.index: note for request, note in items}
        results = self._pipe.stream([request for request, _ in items], self._work.settings, self._work.policy)
        return [self._work.pack(result, beside[result.request.index]) for result in results]


def check_same(wanted: Mapping[str, str], pipe: AdaptivePipeline) -> None:
    """Raise `ModelError` where a machine has other models than the one that asks."""
    found = pipe.fingerprints()
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            raise ModelError(
                f"{name} on {socket.gethostname()} is {found.get(name)!r}, here it is {wanted.get(name)!r}: put the same"
                " card and the same version of allaprima on every machine."
            )


@dataclass(eq=False)
class _Chunk:
    items: list[Item]
    deaths: int = 0
    """Workers that died over it."""

    def halves(self) -> list[_Chunk]:
        """Two chunks; the next death over one of them halves it again."""
        middle = len(self.items) // 2
        return [_Chunk(part, TRIES - 1) for part in (self.items[:middle], self.items[middle:])]


@dataclass(eq=False)
class _Worker:
    actor: Any
    asked: dict[Any, _Chunk] = field(default_factory=dict[Any, _Chunk])
    """By the reference of the answer, oldest first."""


class _ChunkWorkers(Generic[T]):
    """Workers, and what each of them was asked."""

    def __init__(self, ray: Any, work: BatchWork[T], config: WorkerConfig, chunks: Iterator[_Chunk]) -> None:
        self._ray, self._work, self._chunks, self._dry = ray, work, chunks, False
        self._make = ray.remote(BatchWorker).options(num_cpus=config.cpus, num_gpus=config.gpus)
        # One copy for all of them in Ray's store.
        self._put = ray.put(work)
        self._loading: dict[Any, _Worker] = {}
        self._ready: list[_Worker] = []
        self._again: deque[_Chunk] = deque()
        self._lost = 0
        """Workers that died while they loaded, in a row."""
        for _ in range(config.workers):
            self._hire()

    def _hire(self) -> None:
        worker = _Worker(self._make.remote(self._put))
        self._loading[worker.actor.load.remote()] = worker

    @property
    def finished(self) -> bool:
        """Whether everything was asked and answered."""
        return self._dry and not self._again and not any(w.asked for w in self._ready)

    def ask(self) -> None:
        """Give out work, what was asked before first, to whoever has least of it."""
        while self._ready:
            worker = min(self._ready, key=lambda w: len(w.asked))
            if len(worker.asked) >= QUEUED:
                return
            chunk = self._again.popleft() if self._again else next(self._chunks, None)
            if chunk is None:
                self._dry = True
                return
            worker.asked[worker.actor.paint.remote(chunk.items)] = chunk

    def answers(self) -> Iterator[T]:
        """Wait for the next thing to happen; the results, if it is a chunk that was painted."""
        open_ = [*self._loading, *(ref for w in self._ready for ref in w.asked)]
        (ref,), _ = self._ray.wait(open_, num_returns=1)
        errors = self._ray.exceptions
        try:
            found = self._ray.get(ref)
        except errors.RayTaskError as e:
            # Not its death but an exception of ours, as it would be raised in one process.
            raise (e.cause if isinstance(e.cause, Exception) else e) from None
        except (errors.RayActorError, errors.WorkerCrashedError, errors.NodeDiedError, errors.ObjectLostError) as e:
            yield from self._died(ref, e)
            return
        if ref in self._loading:
            self._ready.append(self._loading.pop(ref))
            self._lost = 0
            return
        for worker in self._ready:
            worker.asked.pop(ref, None)
        yield from found

    def _died(self, ref: Any, error: Exception) -> Iterator[T]:
        worker = self._loading.pop(ref, None)
        if worker is not None:
            self._lost += 1
            if self._lost >= LOST:
                raise ModelError(f"{LOST} workers in a row died while they loaded the models: {error}") from error
        else:
            worker = next(w for w in self._ready if ref in w.asked)
            self._ready.remove(worker)
        self._dismiss(worker)
        self._hire()
        chunks = list(worker.asked.values())
        self._again.extend(chunks[1:])
        if chunks:
            # The one that it was at; the others only waited behind it.
            yield from self._blame(chunks[0], error)

    def _blame(self, chunk: _Chunk, error: Exception) -> Iterator[T]:
        chunk.deaths += 1
        if chunk.deaths < TRIES:
            self._again.append(chunk)
        elif len(chunk.items) > 1:
            self._again.extend(chunk.halves())
        else:
            ((request, note),) = chunk.items
            words = f"{TRIES} workers died over it, the last one so: {type(error).__name__}: {error}"
            yield self._work.pack(result_of(self._work.settings, Job(request), words), note)

    def _dismiss(self, worker: _Worker) -> None:
        self._ray.kill(worker.actor, no_restart=True)

    def dismiss(self) -> None:
        """Let everybody go."""
        for worker in (*self._ready, *self._loading.values()):
            self._dismiss(worker)


def paint(work: BatchWork[T], items: Iterable[Item], config: WorkerConfig) -> Iterator[T]:
    """Packed results as they come, of each request once; `items` is read as workers get free. Needs a connection to Ray.

    Raises what a worker raises (not what it dies of), and `SettingError` for workers that the cluster has no room for.
    Closing the iterator ends the workers.
    """
    ray = load_ray()
    check_room(ray, config.cpus, config.gpus, "workers")
    source = iter(items)
    chunks = (_Chunk(part) for part in iter(lambda: list(itertools.islice(source, config.chunk)), []))
    # Before anybody is hired: there may be nothing to do.
    first = next(chunks, None)
    if first is None:
        return
    chunk_workers = _ChunkWorkers(ray, work, config, itertools.chain([first], chunks))
    try:
        while not chunk_workers.finished:
            yield from chunk_workers.answers()
            chunk_workers.ask()
    finally:
        chunk_workers.dismiss()
