"""A study's server, until SIGTERM or Ctrl+C. A vote is on the disk before it is acknowledged, so any end is fine."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Generator

import uvicorn
from fastapi import FastAPI

from allaprima.core.errors import SettingError


class _Server(uvicorn.Server):
    """Uvicorn without its own signals, by which the process would end with an error's code."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Ours are set when the loop runs."""
        yield


def serve(app: FastAPI, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until a signal; `ready` is called with the address when it answers. Raises `SettingError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except (OSError, OverflowError) as e:
            raise SettingError(f"{host}:{port} can't be listened at: {e}. Choose another --port, or 0 for any.") from e
        name, number = listening.getsockname()[:2]
        where = f"http://[{name}]:{number}" if ":" in name else f"http://{name}:{number}"
        asyncio.run(_run(app, listening, lambda: ready(where)))


async def _run(app: FastAPI, listening: socket.socket, ready: Callable[[], None]) -> None:
    config = uvicorn.Config(
        app, http="h11", loop="asyncio", lifespan="off", ws="none", log_level="warning", access_log=False,
        server_header=False, timeout_keep_alive=30, timeout_graceful_shutdown=10, h11_max_incomplete_event_size=2**16,
    )  # fmt: skip
    server = _Server(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: setattr(server, "should_exit", True))
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if not serving.done():
        ready()
    await serving
