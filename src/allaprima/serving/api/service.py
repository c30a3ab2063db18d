"""What the routes share: the engine, who may ask how much, and what is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import anyio.to_thread
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from allaprima.core.errors import AllaprimaError
from allaprima.pipeline import AdaptivePipeline
from allaprima.serving.api.answers import said
from allaprima.serving.api.body import Held
from allaprima.serving.api.errors import ApiError
from allaprima.serving.api.keys import Keys, check_local
from allaprima.serving.api.limits import ALIAS, Limits
from allaprima.serving.api.metrics import Metrics
from allaprima.serving.api.request_parser import ParsedRequest, RequestParser, UploadedImages
from allaprima.serving.api.request_stream import RequestStream
from allaprima.serving.api.schemas import ImageRequestBody
from allaprima.serving.api.traces import Traces
from allaprima.serving.engine import Engine

DECODERS = 2
"""Uploads decoded at the same time."""
SHOWN = ("n", "pixels", "steps", "cost", "prompt_chars", "upload_pixels")
"""Limits that `/v1/models` tells."""


class ImageService:
    """One pipeline behind one engine, for many clients."""

    def __init__(
        self,
        engine: Engine,
        pipe: AdaptivePipeline,
        limits: Limits | None = None,
        keys: Keys | None = None,
        anyone: bool = False,
        traces: Traces | None = None,
        budget: float | None = None,
    ) -> None:
        """`anyone`: without keys, answer whoever can reach this machine, under whatever name.

        `budget`: of requests that don't say how they are decided; None is the calibration's. Raises `SettingError` or
        `CalibrationError` for one that can't be kept.
        """
        self.engine, self.pipe, self.anyone, self.budget = engine, pipe, anyone, budget
        self.limits = limits or Limits.of(pipe.settings)
        self.keys, self.traces = keys or Keys(), traces or Traces()
        self.name = ALIAS if pipe.card is None else pipe.card.name
        self.parser = RequestParser(pipe, self.limits, self.name, engine.clock, budget)
        self.held = Held(self.limits.held_bytes)
        self._decoders = anyio.CapacityLimiter(DECODERS)
        self.metrics = Metrics(engine, pipe.calibration)
        self.draining = False
        self._pictures: Counter[str] = Counter()

    async def client(self, request: Request) -> str:
        """Who asks. Raises a 401 or 403 `ApiError`; looks at headers only."""
        if not self.keys.named and not self.anyone:
            check_local(request.headers.get("host"), request.headers.get("origin"))
        return self.keys.client(request.headers.get("authorization"))

    def check_open(self) -> None:
        """Raise a 503 `ApiError` when nothing new is taken."""
        if self.draining:
            raise ApiError(503, "draining", "this server goes down and takes nothing new: ask another.", retry_after=5)
        self.check_alive()

    def check_alive(self) -> None:
        """Raise a 503 `ApiError` when the engine's thread has died: only a new server helps."""
        if not self.draining and not self.engine.snapshot().running:
            raise ApiError(503, "stopped", "this server's engine has stopped: restart it, or ask another.", retry_after=30)

    async def decoded(self, read: Callable[[], UploadedImages]) -> UploadedImages:
        """Return what `read` reads, off the event loop; a few at a time, for pixels take a hundred times the room of their
        file."""
        return await anyio.to_thread.run_sync(read, limiter=self._decoders)

    def take_room(self, client: str, n: int) -> None:
        """Room for `n` more pictures of a client's, until `give_room`. Raises a 429 `ApiError`."""
        if self._pictures[client] + n > self.limits.client_pictures:
            raise ApiError(
                429, "client_queue_full", f"{self._pictures[client]} of your pictures wait or are being painted,"
                f" {self.limits.client_pictures} may at once: come again when some are done.", retry_after=2,
            )  # fmt: skip
        self._pictures[client] += n

    def give_room(self, client: str, n: int) -> None:
        """Others may have it."""
        self._pictures[client] -= n
        if not self._pictures[client]:
            del self._pictures[client]

    async def submit(
        self, body: ImageRequestBody, client: str, headers: Mapping[str, str], uploads: UploadedImages | None = None
    ) -> tuple[ParsedRequest, RequestStream]:
        """Submit what a body asks for, all or none of it. Raises `ApiError`."""
        settings = self.parser.check(body)
        parsed = await run_in_threadpool(self.parser.parse, body, settings, client, uploads)
        try:
            handles = await run_in_threadpool(self.engine.submit, parsed.requests)
        except AllaprimaError as e:
            raise said(e) from e
        kept = {k: v for k, v in headers.items() if k in ("traceparent", "tracestate")}
        stream = RequestStream(handles)

        def tell(k: int) -> None:
            self.metrics.count(parsed, stream.seen[k])
            self.traces.write(parsed, k, stream.seen[k], kept)

        stream.tell = tell
        return parsed, stream

    def about(self) -> dict[str, Any]:
        """Return the card's settings, limits and calibration, for `/v1/models`."""
        s, own = self.pipe.settings, self.pipe.calibration
        card = self.pipe.card
        return {
            "size": f"{s.width}x{s.height}",
            "student": {"steps": s.student_steps, "solver": s.student_solver, "guidance_scale": s.student_guidance},
            "teacher": {"steps": s.teacher_steps, "solver": s.teacher_solver, "guidance_scale": s.teacher_guidance},
            "strategy": s.strategy,
            "calibration": None
            if own is None
            else {"budget": own.budget, "unit": own.prices.unit, "threshold": own.threshold, "percentile": own.percentile},
            "limits": {k: getattr(self.limits, k) for k in SHOWN},
            "styles": [] if card is None else list(card.styles),
            "fingerprints": self.pipe.fingerprints(),
        }
