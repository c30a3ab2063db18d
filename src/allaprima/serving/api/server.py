"""A server of one card: sockets, signals, and an end that loses no accepted request.

At SIGTERM (or Ctrl+C) nothing new is taken: `/ready` and new requests are answered 503 with Retry-After, so that a balancer
goes elsewhere. What was accepted is finished within `drain_seconds`; what isn't by then is handed back with 503 and
Retry-After. Then the process ends with code 0. A second signal hands back at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Generator

import uvicorn
from fastapi import FastAPI

from allaprima.core.errors import SettingError
from allaprima.serving.api.keys import LOOPBACK
from allaprima.serving.api.service import ImageService

GRACE = 10
"""Seconds in which answers must be out after everything is painted or handed back."""


class _Server(uvicorn.Server):
    """Uvicorn without its own signals: they would end the process by the signal, and without draining."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Ours are set when the loop runs."""
        yield


def check_bind(host: str, keys: bool, anyone: bool) -> None:
    """Raise `SettingError` for an address that others reach, without keys."""
    if host not in LOOPBACK and not keys and not anyone:
        raise SettingError(
            f"host={host!r} can be reached from elsewhere, and there are no keys: give --keys FILE (or ALLAPRIMA_KEYS), or"
            " --allow-anyone if everybody may paint here."
        )


def bound(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `SettingError` where there is none to be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except (OSError, OverflowError) as e:
        made.close()
        raise SettingError(f"{host}:{port} can't be listened at: {e}. Choose another --port, or 0 for any.") from e
    return made


def address(made: socket.socket) -> str:
    """Where a socket is reached."""
    host, port = made.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Running:
    """A server's life from its first answer to its last."""

    def __init__(self, service: ImageService, app: FastAPI, listening: socket.socket, drain_seconds: float) -> None:
        self._service, self._listening, self._drain_seconds = service, listening, drain_seconds
        config = uvicorn.Config(
            app, http="h11", loop="asyncio", lifespan="off", ws="none", log_level="warning", access_log=False,
            server_header=False, timeout_keep_alive=30, timeout_graceful_shutdown=GRACE, h11_max_incomplete_event_size=2**16,
        )  # fmt: skip
        self._server = _Server(config)
        self._hurry: asyncio.Event | None = None

    def run(self, ready: Callable[[str], None]) -> None:
        """Serve until a signal; `ready` is called with the address when it answers."""
        asyncio.run(self._run(ready))

    async def _run(self, ready: Callable[[str], None]) -> None:
        self._hurry = asyncio.Event()
        ending = asyncio.Event()
        loop = asyncio.get_running_loop()

        def signalled() -> None:
            if ending.is_set() and self._hurry is not None:
                self._hurry.set()
            self._service.draining = True
            ending.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, signalled)
        serving = asyncio.ensure_future(self._server.serve(sockets=[self._listening]))
        while not self._server.started and not serving.done():
            await asyncio.sleep(0.01)
        if not serving.done():
            ready(address(self._listening))
        stop = asyncio.ensure_future(ending.wait())
        await asyncio.wait({serving, stop}, return_when=asyncio.FIRST_COMPLETED)
        await self._drain()
        self._server.should_exit = True
        await serving
        self._service.traces.close()

    async def _drain(self) -> None:
        """Finish what was accepted, or hand it back."""
        assert self._hurry is not None
        draining = asyncio.ensure_future(asyncio.to_thread(self._service.engine.drain, self._drain_seconds))
        hurry = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait({draining, hurry}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.to_thread(self._service.engine.stop)
        await draining
        hurry.cancel()
