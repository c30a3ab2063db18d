"""A connection to Ray: a cluster that runs already, or one on this machine that ends with us."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from typing import Any

from allaprima.core.errors import SettingError

STARTS = 3
"""Tries to start a cluster."""
LOST = 5
"""Workers in a row that may die before anything of them is seen to work; then it isn't bad luck."""


def load_ray() -> Any:
    """Return the library, without its usage reports. Raises `SettingError` where it isn't installed."""
    # Read when it is imported, and by every process of a cluster that we start.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as e:
        raise SettingError(f"--engine ray needs more than is installed ({e}): pip install 'allaprima[ray]'") from e
    return ray


@contextlib.contextmanager
def connected(address: str | None, cpus: float, gpus: float = 0) -> Generator[Any]:
    """Ray, connected; what we connected is left at the end, and what we started is ended.

    `address`: of a cluster (`auto`: of the one on this machine); None starts one here with so many `cpus` and `gpus`, which
    are places, not cores: nothing is measured. A connection that this process has already is used and kept. Raises
    `SettingError` for an address where there is no cluster.
    """
    ray = load_ray()
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    here: dict[str, Any] = {"include_dashboard": False, "num_cpus": max(1, round(cpus + 0.49))}
    if gpus:
        here["num_gpus"] = max(1, round(gpus + 0.49))
    try:
        if address is None:
            _start(ray, {**here, **quiet})
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as e:
        raise SettingError(
            f"there is no Ray cluster at {address!r} ({e}): ray start --head, or leave --ray-address out."
        ) from e
    try:
        yield ray
    finally:
        ray.shutdown()


def _start(ray: Any, options: dict[str, Any]) -> None:
    """Start a cluster on this machine. Ray waits for its own processes for 30 s, which can be too short on a busy one."""
    for attempt in range(STARTS):
        try:
            # Without "local" it would look for another cluster of this machine, or in RAY_ADDRESS.
            ray.init(address="local", **options)
            return
        except Exception as e:
            ray.shutdown()
            if "timed out during startup" not in str(e) or attempt + 1 == STARTS:
                raise SettingError(f"Ray couldn't be started on this machine: {e}") from e


def check_room(ray: Any, cpus: float, gpus: float, what: str) -> None:
    """Raise `SettingError` for a worker that no cluster of this size ever has room for: Ray would wait without a word."""
    found = ray.cluster_resources()
    for name, wanted in (("CPU", cpus), ("GPU", gpus)):
        if found.get(name, 0.0) < wanted:
            raise SettingError(
                f"{what} need {wanted:g} {name}, and this Ray cluster has {found.get(name, 0.0):g}: add machines, or ask for"
                " fewer."
            )
