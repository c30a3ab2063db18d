"""Results as OpenAI's clients read them, with the cascade's account beside each picture."""

from __future__ import annotations

import base64
import math
import time
from typing import Any

from allaprima.cascade.policy import Capped, Decision, ThresholdPolicy
from allaprima.cascade.record import chunks, record
from allaprima.cascade.result import Result
from allaprima.core.errors import (
    DeadlinePassed,
    Draining,
    EngineStopped,
    PromptError,
    QueueFull,
    RequestCancelled,
    SettingError,
)
from allaprima.serving.api.asks import Order
from allaprima.serving.api.errors import ApiError
from allaprima.serving.api.pictures import encoded
from allaprima.serving.api.schemas import Account, ImagesReply, Painted
from allaprima.serving.api.watch import Seen
from allaprima.serving.ticket import Draft
from allaprima.tasks.edit import share_of

RETRY = 5.0
"""Seconds after which another server may have taken this one's place."""


def steps_of(result: Result) -> int:
    """Network steps of student and teacher (a guided step is two evaluations but one step)."""
    if result.steps is not None:
        return result.steps
    settings, edit = result.settings, result.request.edit
    student = settings.student_steps * result.attempts if result.cost.evaluations.get("student") else 0
    if not result.cost.evaluations.get("teacher"):
        return student
    if edit is not None and result.decision is Decision.REGENERATE:
        return student + share_of(settings.teacher_steps, edit.strength)
    return student + settings.teacher_steps


def number(value: float | None) -> float | None:
    """JSON has no nan and no infinity."""
    return value if value is not None and math.isfinite(value) else None


def usual_threshold(order: Order, k: int, result: Result) -> float | None:
    """What the draft would have been compared with if there were no load; None where nothing was lowered."""
    own = order.asks[k].policy.threshold
    return own if own is not None and result.threshold is not None and result.threshold < own else None


def text_chunks(order: Order, k: int, result: Result) -> dict[str, str]:
    """What a PNG carries: the same as the command line's, so that `allaprima show --repeat` paints it again."""
    policy = order.asks[k].policy
    if usual_threshold(order, k, result) is not None and result.threshold is not None:
        policy = policy if isinstance(policy, ThresholdPolicy) else Capped(policy, result.threshold)
    maker = order.maker
    made = record(result, maker.card, order.mode, order.asked, maker.fingerprints, policy, maker.beside)
    return chunks(made)


def account(order: Order, k: int, seen: Seen) -> Account:
    """Of a picture that has ended."""
    asked, result = order.asks[k], seen.result
    if result is None:
        return Account(
            index=k, seed=asked.request.seed, score=None, threshold=None, decision=None, steps=None,
            seconds=number(seen.seconds), evaluations={}, compute_seconds={}, attempts=0, calibrated=order.calibrated,
            error="cancelled" if seen.error is None else said(seen.error).message,
        )  # fmt: skip
    return Account(
        index=k,
        seed=result.request.seed,
        score=number(result.score),
        threshold=number(result.threshold),
        decision=None if result.decision is None else str(result.decision),
        steps=steps_of(result),
        seconds=number(seen.seconds),
        evaluations=dict(result.cost.evaluations),
        compute_seconds=dict(result.cost.seconds),
        attempts=result.attempts,
        usual_threshold=(usual := usual_threshold(order, k, result)),
        calibrated=order.calibrated and usual is None,
        warning=result.warning,
        error=result.error,
    )


def failed(seen: Seen) -> bool:
    """Whether a picture that has ended is none."""
    return seen.result is None or seen.result.image is None


def refusal(seen: Seen) -> ApiError:
    """Why there is no picture, as an answer."""
    if seen.error is not None:
        return said(seen.error)
    if seen.result is not None and seen.result.error is not None:
        return ApiError(500, "painting_failed", f"the picture could not be painted: {seen.result.error}")
    return _handed_back()


def _handed_back() -> ApiError:
    return ApiError(503, "handed_back", "the server goes down and gives this request back: ask again.", retry_after=RETRY)


def said(error: Exception) -> ApiError:
    """An engine's error as an answer."""
    if isinstance(error, QueueFull):
        return ApiError(429, "queue_full", str(error), retry_after=error.retry_after)
    if isinstance(error, Draining):
        return ApiError(503, "draining", str(error), retry_after=RETRY)
    if isinstance(error, EngineStopped | RequestCancelled):
        return _handed_back()
    if isinstance(error, DeadlinePassed):
        return ApiError(504, "deadline", str(error), "adaptive.max_latency")
    if isinstance(error, PromptError):
        return ApiError(400, "invalid_prompt", str(error), "prompt")
    if isinstance(error, SettingError):
        return ApiError(400, "invalid_value", str(error))
    return ApiError(500, "painting_failed", f"the picture could not be painted: {type(error).__name__}: {error}")


def painted(order: Order, k: int, seen: Seen) -> Painted:
    """One picture. Encodes it: call it off the event loop."""
    result, data = seen.result, None
    if result is not None and result.image is not None:
        told = text_chunks(order, k, result) if order.kind == "png" else {}
        data = base64.b64encode(encoded(result.image, order.kind, order.compression, told)).decode()
    return Painted(b64_json=data, revised_prompt=order.revised, adaptive=account(order, k, seen))


def reply(order: Order, seen: list[Seen], model: str) -> ImagesReply:
    """All pictures. Raises `ApiError` when there is none of them."""
    if all(failed(s) for s in seen):
        raise refusal(seen[0])
    data = [painted(order, k, s) for k, s in enumerate(seen)]
    return ImagesReply.model_validate(
        {"created": int(time.time()), "data": data, "output_format": order.kind, "size": order.size, "model": model}
    )


def _event(order: Order, kind: str, name: str, data: str | None, more: dict[str, Any]) -> dict[str, Any]:
    """What OpenAI's events have in common; tokens are nobody's here."""
    return {
        "type": f"{kind}.{name}", "b64_json": data, "created_at": int(time.time()), "size": order.size,
        "quality": "auto", "background": "opaque", "output_format": order.kind, **more,
    }  # fmt: skip


def partial_event(order: Order, kind: str, k: int, draft: Draft) -> dict[str, Any]:
    """The draft, as the first partial image. `kind`: image_generation or image_edit. Encodes it."""
    data = base64.b64encode(encoded(draft.image, order.kind, order.compression)).decode()
    adaptive = {
        "index": k, "seed": order.asks[k].request.seed, "score": number(draft.score), "threshold": number(draft.threshold),
        "decision": str(draft.decision),
    }  # fmt: skip
    return _event(order, kind, "partial_image", data, {"partial_image_index": 0, "adaptive": adaptive})


def completed_event(order: Order, kind: str, k: int, seen: Seen) -> dict[str, Any]:
    """The picture. Encodes it."""
    made = painted(order, k, seen)
    tokens = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    usage = {**tokens, "input_tokens_details": {"image_tokens": 0, "text_tokens": 0}}
    more = {"usage": usage, "revised_prompt": order.revised, "adaptive": made.adaptive.model_dump()}
    return _event(order, kind, "completed", made.b64_json, more)
