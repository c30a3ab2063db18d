"""How soon a server with a full queue says so, over HTTP, while its engine paints.

    python -m benchmarks.refusals [--json] [--requests 200]

A server on 127.0.0.1 with one place in its queue, and that taken, is asked again and again on one connection. Every answer
must be a 429 with `Retry-After`. Printed are milliseconds from sending to the last byte: median, 95th percentile, most.
The aim is 50. The engine's thread works on the bundled pair all the while, so this machine is as busy as a full server is.
"""

from __future__ import annotations

import argparse
import http.client
import json
import threading
import time
from collections.abc import Generator
from contextlib import closing, contextmanager

import numpy as np
import uvicorn

from allaprima.cascade.policy import AlwaysPolicy, Decision
from allaprima.cascade.request import GenerationRequest
from allaprima.core.errors import ModelError
from allaprima.pipeline import AdaptivePipeline
from allaprima.serving.api.app import create_app
from allaprima.serving.api.server import bound
from allaprima.serving.api.service import ImageService
from allaprima.serving.engine import Engine
from allaprima.serving.handle import EngineRequest
from allaprima.serving.queue import EngineLimits

BODY = json.dumps({"prompt": "red apple, noto", "adaptive": {"mode": "student-only"}}).encode()


@contextmanager
def full(pipe: AdaptivePipeline, steps: int = 1000) -> Generator[int]:
    """Return the port of a server that paints one picture for long, with another in its only place; it ends then."""
    engine = Engine(pipe, EngineLimits(queue=1, in_flight=1))
    settings = pipe.settings.changed(batch_size=1, teacher_steps=steps, teacher_solver="ddim", teacher_last_time=None)
    ask = EngineRequest(GenerationRequest("red apple, noto", 1), settings, AlwaysPolicy(Decision.REGENERATE))
    server = uvicorn.Server(uvicorn.Config(create_app(ImageService(engine, pipe)), log_level="warning", lifespan="off"))
    sock = bound("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    engine.start()
    thread.start()
    engine.submit([ask])
    while not engine.snapshot().in_flight or not server.started:
        time.sleep(0.01)
    engine.submit([ask])
    try:
        yield sock.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
        engine.stop()


def refused(port: int, requests: int) -> list[float]:
    """Seconds to each refusal. Raises `ModelError` for an answer that is none."""
    seconds: list[float] = []
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        for _ in range(requests):
            begun = time.perf_counter()
            connection.request("POST", "/v1/images/generations", BODY, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            seconds.append(time.perf_counter() - begun)
            if answer.status != 429 or int(answer.headers.get("Retry-After", "0")) < 1:
                raise ModelError(f"{answer.status} {text[:200]!r}: a 429 with Retry-After was due.")
    return seconds


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", action="store_true")
    p.add_argument("--requests", type=int, default=200)
    args = p.parse_args()
    with full(AdaptivePipeline.from_card("emoji")) as port:
        refused(port, 5)
        seconds = refused(port, args.requests)
    ms = {q: 1e3 * float(np.quantile(seconds, q)) for q in (0.5, 0.95, 1.0)}
    if args.json:
        print(json.dumps({"requests": len(seconds), "ms": ms}, indent=1))
    else:
        print(", ".join(f"{q:.0%}: {v:.1f} ms" for q, v in ms.items()), f"of {len(seconds)} refusals")


if __name__ == "__main__":
    main()
