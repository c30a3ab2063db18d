"""What a caller gives an engine and gets back: a request, a handle for it, and the events of its image."""

from __future__ import annotations

import logging
import secrets
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from allaprima.cascade.job import Job
from allaprima.cascade.policy import Decision, Policy
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.result import Result
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import RequestCancelledError
from allaprima.serving.snapshot import Share

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineRequest:
    """One picture, with the settings and the policy it is painted by."""

    request: GenerationRequest
    settings: CascadeSettings
    policy: Policy
    priority: int = 0
    """Higher goes first, as long as lower ones haven't waited too long (`admission`)."""
    deadline: float | None = None
    """By the engine's clock, in its seconds (`engine.clock() + 10` is in ten): later than that the picture is of no use."""
    client: str = ""
    """Who asks: clients get fair shares, whatever each of them has queued."""
    adjustable: bool = False
    """Whether a controller may lower the policy's threshold under load. A caller who fixed a threshold or a budget expects
    False; True is for those who left it to the server."""


@dataclass(frozen=True)
class Started:
    """Painting begins: the request has left the queue."""


@dataclass(frozen=True)
class Draft:
    """The student's picture was scored and decided about. With several drafts there are several, each the best so far."""

    image: Tensor
    """`(3, H, W)` in [0, 1]; with a rough autoencoder for drafts (`models.adapters.tiny_vae`) it is that one's picture."""
    score: float | None
    """The oracle's; nan when it failed, None when there is no oracle."""
    threshold: float | None
    """What the score was compared with; None where nothing was."""
    decision: Decision


@dataclass(frozen=True)
class Finished:
    """The picture is painted; `result.image` is never None."""

    result: Result


@dataclass(frozen=True)
class Failed:
    """There won't be a picture.

    `error`: a `ServingError` (`PictureFailedError`, `DeadlinePassedError`, `EngineStoppedError`).
    """

    error: Exception


@dataclass(frozen=True)
class Cancelled:
    """The request was taken back (`RequestHandle.cancel`) before its picture was finished."""


@dataclass(frozen=True)
class HandedOver:
    """The job has left the stages that it was to be taken through here (`Engine.go_on`); no other request ends so."""

    job: Job
    steps: Counter[str]
    """Network steps here, by painter."""
    share: Share
    """What it took of the batches it was in."""


Event = Started | Draft | Finished | Failed | Cancelled | HandedOver
Listener = Callable[[Event], None]
LAST = (Finished, Failed, Cancelled, HandedOver)
"""Exactly one of these ends a request; nothing comes after it."""


class RequestHandle:
    """A request that was accepted. Safe to use from any thread."""

    def __init__(self, request: EngineRequest, on_cancel: Callable[[RequestHandle], None]) -> None:
        self.request = request
        self.id = secrets.token_hex(8)
        """Unguessable, unique."""
        self._on_cancel = on_cancel
        self._lock = threading.RLock()
        self._events: list[Event] = []
        self._listeners: list[Listener] = []
        self._ended = threading.Event()

    @property
    def done(self) -> bool:
        """Whether its last event has happened."""
        return self._ended.is_set()

    def cancel(self) -> None:
        """Take the request back: a queued one leaves the queue at once, one that is painted stops at the next step boundary.

        Returns at once; `Cancelled` follows, unless the picture is finished first. Twice, or too late, does nothing.
        """
        self._on_cancel(self)

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the picture.

        Raises `TimeoutError` after `timeout` seconds, what `Failed` carries, or `RequestCancelledError`.

        From a listener that handles the last event it returns or raises at once.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"request {self.id} isn't finished after {timeout:g} s.")
        last = self._events[-1]
        if isinstance(last, Finished):
            return last.result
        if isinstance(last, Failed):
            raise last.error
        raise RequestCancelledError(f"request {self.id} was cancelled.")

    def add_listener(self, listener: Listener) -> None:
        """Call `listener(event)` for every event, in order, those that have happened already first (in this thread).

        Later ones come in the engine's compute thread, which waits meanwhile: a listener hands over and returns (for
        asyncio, `loop.call_soon_threadsafe`). What it raises is logged and forgotten.
        """
        with self._lock:
            for event in self._events:
                _call(listener, event)
            if not self.done:
                self._listeners.append(listener)

    def tell(self, event: Event) -> None:
        """For engines: the next event. After the last one nothing is told, and listeners are let go."""
        with self._lock:
            if self.done:
                return
            self._events.append(event)
            listeners = list(self._listeners)
            if isinstance(event, LAST):
                self._ended.set()
                self._listeners.clear()
            for listener in listeners:
                _call(listener, event)


def _call(listener: Listener, event: Event) -> None:
    try:
        listener(event)
    except Exception:
        log.exception("a listener failed at %s", type(event).__name__)
