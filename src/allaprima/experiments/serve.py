"""Serving of one card behind OpenAI's images endpoints."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console

from allaprima.calibration.artifact import Calibration
from allaprima.calibration.threshold import threshold_for
from allaprima.core.errors import SettingError
from allaprima.models.placement.device_config import DeviceConfig
from allaprima.pipeline import AdaptivePipeline
from allaprima.serving.controller import Controller, Objective
from allaprima.serving.engine import Engine
from allaprima.serving.oracle_guard import OracleFailure
from allaprima.serving.queue import EngineLimits
from allaprima.serving.remote_workers import RemoteWorkers


@dataclass(frozen=True)
class ServeOptions:
    """Options of the command, as given."""

    card: str
    calibration: Path | None
    host: str
    port: int
    keys: Path | None
    allow_anyone: bool
    batch_size: int
    max_queue: int
    budget: float | None
    latency_objective: float | None
    lowest_threshold: float | None
    oracle_failure: OracleFailure
    oracle_timeout: float | None
    max_pictures: int | None
    max_pixels: int | None
    max_steps: int | None
    max_per_client: int | None
    drain_seconds: float
    traces: str | None
    engine: str = "process"
    ray_address: str | None = None
    pools: str = ""
    device_config: DeviceConfig = field(default_factory=DeviceConfig, kw_only=True)

    def check(self) -> None:
        """Raise `SettingError` before anything is loaded."""
        if not 0 <= self.port <= 65535:
            raise SettingError(f"port={self.port!r} is out of range: 0 (any that is free) to 65535.")
        if not 0 <= self.drain_seconds <= 86_400:
            raise SettingError(f"drain_seconds={self.drain_seconds!r} is out of range: 0..86400.")
        if self.latency_objective is None and self.lowest_threshold is not None:
            raise SettingError("--lowest-threshold is for --latency-objective: give both, or neither.")
        if self.engine not in ("process", "ray"):
            raise SettingError(f"engine={self.engine!r} is not known: process (here), or ray (pools on a Ray cluster).")
        if self.engine == "process" and (self.ray_address is not None or self.pools):
            raise SettingError("--ray-address and --pools are for --engine ray: give it too, or leave them out.")


def controller_of(o: ServeOptions, pipe: AdaptivePipeline) -> Controller | None:
    """Return what lowers thresholds under load, if that is asked for.

    Without `--lowest-threshold` it goes down to where half as many drafts fall short as calibrated. Raises `SettingError`.
    """
    if o.latency_objective is None:
        return None
    own: Calibration | None = pipe.calibration
    if own is None:
        raise SettingError("--latency-objective lowers a calibrated threshold, and this card has none: allaprima calibrate.")
    high = pipe.policy(pipe.settings, None, o.budget).threshold
    if high is None:
        raise SettingError("--latency-objective lowers a threshold, and this calibration's policy has none.")
    short = sum(s < high for s in own.scores) / len(own.scores)
    low = threshold_for(own.scores, short / 2) if o.lowest_threshold is None else o.lowest_threshold
    return Controller(Objective(o.latency_objective, low, high))


@contextlib.contextmanager
def workers_of(o: ServeOptions, pipe: AdaptivePipeline) -> Generator[tuple[RemoteWorkers | None, int]]:
    """Who takes jobs through their stages, None for this process; and how many may be in flight."""
    if o.engine == "process":
        yield None, 3 * o.batch_size
        return
    import torch

    from allaprima.fleet.ray_serve import ReplicaConfig, deployed, pools_of

    gpu = str(o.device_config.device or "").startswith("cuda")
    pools = pools_of(o.pools, float(torch.get_num_threads()), 1.0 if gpu else 0.0)
    card = str(Path(o.card).resolve()) if Path(o.card).exists() else o.card
    make = partial(AdaptivePipeline.from_card, card, device_config=o.device_config)
    crewman = ReplicaConfig(make, pipe.fingerprints(), torch.get_num_threads(), o.oracle_timeout)
    # Each replica's batch, and as much again on its way.
    flying = 2 * o.batch_size * sum(pool.most for pool in pools.values())
    with deployed(crewman, pools, o.ray_address, o.batch_size) as fleet:
        yield fleet, flying


def serve_command(o: ServeOptions) -> None:
    """Load, listen, serve until a signal, finish what was accepted."""
    with contextlib.ExitStack() as stack:
        _serve(o, stack)


def _serve(o: ServeOptions, stack: contextlib.ExitStack) -> None:
    try:
        from allaprima.serving.api.app import create_app
        from allaprima.serving.api.demo import add_demo
        from allaprima.serving.api.keys import Keys
        from allaprima.serving.api.limits import Limits
        from allaprima.serving.api.server import Running, bound, check_bind
        from allaprima.serving.api.service import ImageService
        from allaprima.serving.api.traces import Traces
    except ImportError as e:
        raise SettingError(f"serving needs more than is installed ({e}): pip install 'allaprima[serve]'") from e
    begun = time.monotonic()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    o.check()
    keys, traces = Keys.load(o.keys), Traces.configured(o.traces)
    check_bind(o.host, bool(keys.named), o.allow_anyone)
    listening = bound(o.host, o.port)
    with console.status("loading models"):
        pipe = AdaptivePipeline.from_card(o.card, o.calibration, device_config=o.device_config)
    pipe.settings = pipe.settings.changed(batch_size=o.batch_size)
    limits = Limits.of(
        pipe.settings, n=o.max_pictures, pixels=o.max_pixels, steps=o.max_steps, client_pictures=o.max_per_client
    )  # fmt: skip
    controller = controller_of(o, pipe)
    with console.status("waiting for workers"):
        workers, flying = stack.enter_context(workers_of(o, pipe))
    engine = Engine(
        pipe, EngineLimits(queue=o.max_queue, in_flight=flying), controller=controller,
        on_oracle_failure=o.oracle_failure, oracle_timeout=o.oracle_timeout, workers=workers,
    )  # fmt: skip
    service = ImageService(engine, pipe, limits, keys, o.allow_anyone, traces, o.budget)
    app = create_app(service)
    add_demo(app, service)
    engine.start()
    # Reading every concept takes seconds that nobody needs to wait for: known words don't.
    words = threading.Thread(target=service.parser.warm, name="words", daemon=True)
    words.start()
    if not keys.named:
        who = "whoever reaches it" if o.allow_anyone else "this machine alone"
        console.print(f"[yellow]note:[/] no keys: it answers {who} (--keys FILE gives every client its own)")

    def ready(where: str) -> None:
        console.print(f"ready after {time.monotonic() - begun:.1f} s; stop with Ctrl+C or SIGTERM")
        print(f"{where}/v1", flush=True)

    Running(service, app, listening, o.drain_seconds).run(ready)
    # A thread that is inside a network when Python ends takes the process down with it (seen: exit code -6).
    words.join()
    done = engine.snapshot()
    console.print(f"stopped: {done.finished} painted, {done.failed} failed or handed back, {done.cancelled} cancelled")
