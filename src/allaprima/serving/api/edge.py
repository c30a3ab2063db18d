"""The outermost layer: answers are counted, and a refusal reaches a client that is still sending its body."""

from __future__ import annotations

import asyncio

from prometheus_client import Counter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LINGER_BYTES, LINGER_SECONDS = 32 * 2**20, 2.0
"""Of a body that nobody wants any more: how much of it is read and forgotten before the answer."""


class Edge:
    """ASGI middleware.

    A server that answers and closes while the client still sends makes the client's system drop the answer: it sees a broken
    connection instead of a 413. So the rest is read first, up to a limit, and forgotten.
    """

    def __init__(self, app: ASGIApp, answers: Counter) -> None:
        self._app, self._answers = app, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        whole = False

        async def received() -> Message:
            nonlocal whole
            message = await receive()
            whole = whole or message["type"] != "http.request" or not message.get("more_body", False)
            return message

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The route's own path: others are one, or every guess of a stranger would be a metric of its own.
                self._answers.labels(getattr(scope.get("route"), "path", "other"), str(message["status"])).inc()
                if not whole and message["status"] >= 400:
                    await forget(receive)
            await send(message)

        await self._app(scope, received, sent)


async def forget(receive: Receive) -> None:
    """Read what is left of a body, within limits."""
    size = 0
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while size < LINGER_BYTES:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
                size += len(message.get("body", b""))
    except TimeoutError:
        return
