"""A Ray cluster on this machine for tests, with two workers' room; nothing of it is left after."""

import contextlib
import gc
import os
import time
import warnings
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def two_workers():
    ray = pytest.importorskip("ray")
    from allaprima.fleet.ray_cluster import connected

    # Workers import what tests do; they have the environment of whoever starts the cluster.
    paths = [ROOT / "src", ROOT, ROOT / "tests", ROOT / "tests" / "serving", ROOT / "tests" / "fleet"]
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    mine = psutil.Process()
    others = {p.pid for p in mine.children(recursive=True)}
    try:
        with connected(None, 2):
            yield ray
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    until = time.monotonic() + 20
    while (left := [p for p in mine.children(recursive=True) if p.pid not in others]) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left, f"the cluster left processes: {left}"
    with warnings.catch_warnings():
        # Ray leaves sockets and event loops of its own to the collector, which would call each a failure of ours.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
