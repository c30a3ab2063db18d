"""A server's engine over Ray Serve: pools of students, oracles and teachers that scale apart.

The engine (`serving.engine`) stays in the server's process and keeps what it always keeps: the queue, deadlines, policies,
handles. What its one thread did with networks, replicas of three deployments do: a job travels to a student, comes back a
draft, travels to an oracle, comes back decided, and perhaps travels to a teacher. In each replica an engine of its own puts
the jobs that are there into shared batches, step by step.

A replica that dies loses nothing: the server has the job as it was when it left, and asks another. Bytes follow from the
seed, so a job that was painted twice is the same job, and only one answer of it is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from allaprima.cascade.job import Stage
from allaprima.core.errors import DrainingError, EngineStoppedError, PictureFailedError, SettingError
from allaprima.fleet.ray_batch import check_same
from allaprima.fleet.ray_cluster import check_room, connected
from allaprima.pipeline import AdaptivePipeline
from allaprima.serving.engine import Engine
from allaprima.serving.handle import LAST, Event, Failed, HandedOver
from allaprima.serving.queue import EngineLimits
from allaprima.serving.remote_workers import Back, StageRun, compact

POOLS: Mapping[Stage, str] = {
    Stage.NEW: "student", Stage.STUDENT: "student", Stage.SCORE: "oracle", Stage.RECHECK: "oracle",
    Stage.PREVIEW: "oracle", Stage.TEACHER: "teacher", Stage.DECODE: "teacher",
}  # fmt: skip
"""Who takes a job that is in a stage."""
TRIES = 5
"""Replicas that may die over a job before it is given up: it is what kills them."""
LIMITS = EngineLimits(queue=2**20, in_flight=2**20, bytes=2**50)
"""A replica's: who is let in, the server has decided."""
UNLIMITED = 2**20
ROUTER = "allaprima.fleet.ray_router.LeastLoaded"
PATIENCE = 2.0
"""Seconds between two tries, at most."""


@dataclass(frozen=True)
class WorkerPool:
    """How many replicas, and what each takes of Ray's places. Raises `SettingError` for numbers out of range."""

    least: int = 1
    most: int = 1
    """Above `least`: Serve adds and takes away replicas by the pictures in flight at each."""
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most <= 10_000:
            raise SettingError(f"replicas {self.least}-{self.most} are out of range: 1..10000, the smaller number first.")

    def options(self, in_flight: int) -> dict[str, Any]:
        """Return a deployment's; `in_flight`: pictures at a replica that are enough for it."""
        if self.most == self.least:
            return {"num_replicas": self.least}
        scale = {"min_replicas": self.least, "max_replicas": self.most, "target_ongoing_requests": in_flight}
        return {"autoscaling_config": scale}


def pools_of(text: str, cpus: float, gpus: float) -> dict[str, WorkerPool]:
    """`student=2,oracle=1,teacher=1-4` as pools; those that aren't named have one replica. Raises `SettingError`."""
    found = {name: WorkerPool(cpus=cpus, gpus=gpus) for name in ("student", "oracle", "teacher")}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, numbers = part.partition("=")
        least, _, most = numbers.partition("-")
        if name not in found or not least.isdecimal() or not (most or "1").isdecimal():
            raise SettingError(f"pools: {part!r} is no pool with a number, as student=2, oracle=1 or teacher=1-4.")
        found[name] = WorkerPool(int(least), int(most or least), cpus, gpus)
    return found


@dataclass(frozen=True)
class ReplicaConfig:
    """What a replica needs to know. It travels by pickle."""

    make: Callable[[], AdaptivePipeline]
    """Makes the pipeline, there."""
    fingerprints: Mapping[str, str]
    """That it must have."""
    threads: int = 1
    """Torch's; bits follow from them."""
    oracle_timeout: float | None = None


class Replica:
    """The body of all three deployments: an engine that takes jobs through the stages of their runs."""

    def __init__(self, config: ReplicaConfig) -> None:
        torch.set_num_threads(config.threads)
        pipe = config.make()
        check_same(config.fingerprints, pipe)
        self._engine = Engine(pipe, LIMITS, oracle_timeout=config.oracle_timeout)
        self._engine.start()

    async def __call__(self, run: StageRun) -> HandedOver | Exception:
        """Return the job when it has left its run's stages, or why it failed. A cancelled call stops at the next step."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Event] = loop.create_future()

        def end(event: Event) -> None:
            if isinstance(event, LAST):
                loop.call_soon_threadsafe(lambda: ended.done() or ended.set_result(event))

        try:
            handle = self._engine.go_on(run)
        except DrainingError as e:
            return e
        handle.add_listener(end)
        try:
            event = await ended
        except asyncio.CancelledError:
            handle.cancel()
            raise
        if isinstance(event, HandedOver):
            return dataclasses.replace(event, job=compact(event.job))
        return (
            event.error if isinstance(event, Failed) else EngineStoppedError(f"the run ended with {type(event).__name__}.")
        )

    def check_health(self) -> None:
        """Raise if the engine is dead. Serve calls it, and replaces a replica that raises."""
        if not self._engine.snapshot().running:
            raise RuntimeError("this replica's engine has died")

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.stop(5)


class RayWorkers:
    """The remote workers of a server's engine: Serve's deployments; what was lost with a replica is asked for again."""

    def __init__(self, ray: Any, handles: Mapping[str, Any]) -> None:
        from ray.serve import exceptions

        found, serve = ray.exceptions, exceptions
        self._lost = (
            found.RayActorError, found.WorkerCrashedError, found.NodeDiedError, found.ObjectLostError,
            serve.RayServeException, serve.RequestCancelledError,
        )  # fmt: skip
        self._handles = handles
        self._loop = asyncio.new_event_loop()
        self._runs: set[Any] = set()
        self.asked_again = 0
        """Jobs that were lost with a replica, so far."""
        self._thread = threading.Thread(target=self._loop.run_forever, name="ray workers", daemon=True)
        self._thread.start()

    def run(self, run: StageRun, done: Callable[[Back], None]) -> Callable[[], None]:
        """See `serving.remote_workers.RemoteWorkers`."""
        asking = asyncio.run_coroutine_threadsafe(self._ask(run), self._loop)
        self._runs.add(asking)

        def ended(future: Any) -> None:
            self._runs.discard(future)
            done(None if future.cancelled() else future.exception() or future.result())

        asking.add_done_callback(ended)

        def give_up() -> None:
            asking.cancel()

        return give_up

    async def _ask(self, run: StageRun) -> HandedOver | Exception:
        handle, sent = self._handles[POOLS[run.job.stage]], dataclasses.replace(run, job=compact(run.job))
        until = None if run.seconds_left is None else time.monotonic() + run.seconds_left
        found: HandedOver | Exception = EngineStoppedError("nobody was asked.")
        for attempt in range(TRIES):
            if attempt:
                self.asked_again += 1
                await asyncio.sleep(min(PATIENCE, 0.1 * 2**attempt))
            left = None if until is None else until - time.monotonic()
            response = handle.remote(dataclasses.replace(sent, seconds_left=left))
            try:
                found = await response
            except asyncio.CancelledError:
                response.cancel()
                raise
            except self._lost as e:
                found = EngineStoppedError(f"{type(e).__name__}: {e}")
            if not isinstance(found, EngineStoppedError | DrainingError):
                return found
        return PictureFailedError(f"{TRIES} workers were lost over this picture, the last one so: {found}. Others go on.")

    def close(self) -> None:
        """Give up everything, and end."""
        for asking in list(self._runs):
            asking.cancel()
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)


@contextlib.contextmanager
def deployed(
    config: ReplicaConfig, pools: Mapping[str, WorkerPool], address: str | None = None, in_flight: int = 16
) -> Generator[RayWorkers]:
    """Return a fleet whose replicas have loaded; they end with it, and the cluster if it was started here.

    `address`: of a Ray cluster; None starts one on this machine. `in_flight`: pictures at a replica beyond which a pool that
    may grow does. Raises `SettingError` for a cluster without room, and what a replica raises while it loads.
    """
    cpus, gpus = (sum(p.most * getattr(p, unit) for p in pools.values()) for unit in ("cpus", "gpus"))
    with connected(address, cpus, gpus) as ray:
        from ray import serve

        for name, pool in pools.items():
            check_room(ray, pool.cpus, pool.gpus, f"replicas of the {name} pool")
        ours = not _running(ray)
        # The HTTP side is ours: Serve's own proxies stay off.
        serve.start(proxy_location="Disabled")
        mark = secrets.token_hex(3)
        apps = {name: f"allaprima-{name}-{mark}" for name in pools}
        targets = [
            serve.RunTarget(_application(serve, config, name, pool, in_flight), name=apps[name], route_prefix=None)
            for name, pool in pools.items()
        ]
        try:
            handles = dict(zip(pools, serve.run_many(targets), strict=True))
            fleet = RayWorkers(ray, handles)
            try:
                yield fleet
            finally:
                fleet.close()
        finally:
            if ours:
                serve.shutdown()
            else:
                for name in apps.values():
                    serve.delete(name)


def _application(serve: Any, config: ReplicaConfig, name: str, pool: WorkerPool, in_flight: int) -> Any:
    """Return a pool, as Serve deploys it."""
    deployment = serve.deployment(Replica).options(
        name=name, max_ongoing_requests=UNLIMITED, request_router_config={"request_router_class": ROUTER},
        ray_actor_options={"num_cpus": pool.cpus, "num_gpus": pool.gpus}, health_check_period_s=5,
        graceful_shutdown_wait_loop_s=0.1, graceful_shutdown_timeout_s=5, **pool.options(in_flight),
    )  # fmt: skip
    return deployment.bind(config)


def _running(ray: Any) -> bool:
    """Whether somebody's Serve is there already. (To ask Serve for its status would start it.)"""
    return {"name": "SERVE_CONTROLLER_ACTOR", "namespace": "serve"} in ray.util.list_named_actors(all_namespaces=True)
