"""Server-sent events: drafts as they come, then pictures."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from allaprima.serving.api.answers import completed_event, failed, partial_event, refusal
from allaprima.serving.api.request_parser import ParsedRequest
from allaprima.serving.api.request_stream import RequestStream, unless_left

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def line(event: dict[str, Any]) -> bytes:
    """One event; an error has OpenAI's body and no type, as its client wants it."""
    name = event.get("type", "error")
    return f"event: {name}\ndata: {json.dumps(event)}\n\n".encode()


async def events(parsed: ParsedRequest, stream: RequestStream, kind: str) -> AsyncIterator[bytes]:
    """Yield the lines of a request's stream."""
    async for k, draft in stream.drafts_and_ends():
        if draft is not None:
            if parsed.partial_images:
                yield line(await run_in_threadpool(partial_event, parsed, kind, k, draft))
        elif failed(stream.seen[k]):
            yield line(refusal(stream.seen[k]).body)
        else:
            yield line(await run_in_threadpool(completed_event, parsed, kind, k, stream.seen[k]))


class EventStream(Response):
    """Sends lines until they end or the client leaves; then its requests are cancelled."""

    media_type = "text/event-stream"

    def __init__(self, lines: AsyncIterator[bytes], stream: RequestStream, done: Callable[[], None]) -> None:
        """`done` is called when it is over, however it ended."""
        super().__init__(headers=HEADERS)
        self._lines, self._watch, self._done = lines, stream, done
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            async with self._watch:
                await unless_left(self._send(send), receive)
        finally:
            self._done()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for data in self._lines:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
