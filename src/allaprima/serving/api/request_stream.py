"""Requests seen from the event loop: events come from the compute thread and wait here for the coroutine that answers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from starlette.types import Receive

from allaprima.cascade.result import Result
from allaprima.serving.handle import Cancelled, Draft, Event, Failed, Finished, HandedOver, RequestHandle, Started

T = TypeVar("T")


@dataclass
class RequestProgress:
    """What has become of one picture, and when (`time.time()`)."""

    admitted: float = field(default_factory=time.time)
    started: float | None = None
    drafted: float | None = None
    ended: float | None = None
    result: Result | None = None
    error: Exception | None = None
    cancelled: bool = False

    @property
    def seconds(self) -> float | None:
        """From admission to the end."""
        return None if self.ended is None else self.ended - self.admitted


class RequestStream:
    """The handles of one HTTP request. Use within `async with`: what is unfinished at the end is cancelled."""

    def __init__(self, handles: Sequence[RequestHandle]) -> None:
        self._tickets = handles
        self.tell: Callable[[int], Any] | None = None
        """Called on the event loop with the place of each picture that has ended."""
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self.seen = [RequestProgress() for _ in handles]
        for k, handle in enumerate(handles):
            handle.add_listener(partial(self._post, k))

    def _post(self, k: int, event: Event) -> None:
        """Post an event. Called from the compute thread."""
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits any more.
            self._loop.call_soon_threadsafe(self._events.put_nowait, (k, event))

    async def __aenter__(self) -> RequestStream:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Give up whatever is not finished."""
        for k, (handle, seen) in enumerate(zip(self._tickets, self.seen, strict=True)):
            if seen.ended is None:
                handle.cancel()
                self._end(k, None)

    async def drafts_and_ends(self) -> AsyncIterator[tuple[int, Draft | None]]:
        """Place and draft as drafts come, place and None as pictures end; done when all have."""
        while any(s.ended is None for s in self.seen):
            k, event = await self._events.get()
            seen = self.seen[k]
            if seen.ended is not None:
                continue
            if isinstance(event, Started):
                seen.started = seen.started or time.time()
            elif isinstance(event, Draft):
                seen.drafted = time.time()
                yield k, event
            else:
                self._end(k, event)
                yield k, None

    def _end(self, k: int, event: Finished | Failed | Cancelled | HandedOver | None) -> None:
        seen = self.seen[k]
        seen.ended = time.time()
        if isinstance(event, Finished):
            seen.result = event.result
        elif isinstance(event, Failed):
            seen.error = event.error
        else:
            seen.cancelled = True
        if self.tell is not None:
            self.tell(k)

    async def all(self) -> list[RequestProgress]:
        """When all have ended."""
        async for _ in self.drafts_and_ends():
            pass
        return self.seen


async def left(receive: Receive) -> None:
    """Return when the client has gone; its body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_left(work: Coroutine[Any, Any, T], receive: Receive) -> T | None:
    """Return what a coroutine returns, or None when the client went first: the coroutine is cancelled then."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
