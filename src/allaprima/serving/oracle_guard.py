"""An oracle that raises or hangs: what becomes of drafts that it gave no number for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from allaprima.cascade.policy import Context, Decision, Policy, PolicyWrapper
from allaprima.cascade.scoring import ControlScorer, ImageScorer
from allaprima.core.errors import ModelError

OracleFailure = Literal["policy", "accept", "regenerate", "refuse"]
"""What becomes of a draft without a score: what its policy says of nan, as offline (the paper's threshold sends it to the
teacher); accepted; painted anew; or the request fails."""


@dataclass(frozen=True)
class Unscored(PolicyWrapper):
    """The inner policy, but drafts without a score go one fixed way."""

    decision: Decision

    def actions(self, strategy: Decision) -> frozenset[Decision]:
        """Return the inner policy's, and the fixed one."""
        return self.inner.actions(strategy) | {self.decision}

    def decide(self, scores: Sequence[float], context: Context | None = None) -> list[Decision]:
        """Return the inner policy's, where there is a number."""
        inner = self.inner.decide(scores, context)
        return [self.decision if s != s else d for s, d in zip(scores, inner, strict=True)]


def when_unscored(policy: Policy, on_failure: OracleFailure) -> Policy:
    """Return the policy as an engine asks it; `refuse` is the engine's to carry out."""
    if on_failure in ("policy", "refuse") or not policy.uses_scores:
        return policy
    return Unscored(policy, Decision(on_failure))


class GuardedOracle:
    """An oracle whose calls are given up after `timeout` seconds, and that isn't asked again until the hung call is back.

    Calls come from one thread at a time. They run in a thread of their own, which can't be killed, only left behind: never
    more than one. Without a timeout they run where they are made.
    """

    def __init__(self, oracle: ImageScorer, timeout: float | None) -> None:
        self.oracle, self.timeout = oracle, timeout
        self.timeouts = 0
        """Calls given up."""
        self._hung: Future[Tensor] | None = None
        self._calls: queue.SimpleQueue[tuple[Future[Tensor], Callable[[], Tensor]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if isinstance(oracle, ControlScorer):
            given = oracle.score_given
            # On the object, not the class: scoring looks whether an oracle has it.
            self.score_given = lambda images, prompts, controls: self._ask(lambda: given(images, prompts, controls))

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the oracle's `(B,)`. Raises what it raises, or `ModelError` when it doesn't answer in time."""
        return self._ask(lambda: self.oracle.score(images, prompts))

    def _ask(self, call: Callable[[], Tensor]) -> Tensor:
        if self.timeout is None:
            return call()
        if self._hung is not None and not self._hung.done():
            raise ModelError("the oracle hasn't come back from an earlier call: it isn't asked until it has.")
        if self._thread is None:
            self._thread = threading.Thread(target=self._answer, name="oracle", daemon=True)
            self._thread.start()
        self._hung = Future[Tensor]()
        self._calls.put((self._hung, call))
        try:
            return self._hung.result(self.timeout)
        except TimeoutError:
            if self._hung.done():
                raise
            self.timeouts += 1
            raise ModelError(f"the oracle gave no answer within {self.timeout:g} s.") from None

    @torch.inference_mode()
    def _answer(self) -> None:
        while (todo := self._calls.get()) is not None:
            future, call = todo
            try:
                future.set_result(call())
            except BaseException as e:
                future.set_exception(e)
            del todo, future, call

    def close(self) -> None:
        """Let the thread end once it is free."""
        self._calls.put(None)
