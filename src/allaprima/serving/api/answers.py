"""Results as OpenAI's clients read them, with the cascade's account beside each picture."""

from __future__ import annotations

import base64
import math
import time
from typing import Any

from allaprima.cascade.metadata import chunks, record
from allaprima.cascade.policy import Capped, ThresholdPolicy
from allaprima.cascade.result import Result
from allaprima.core.errors import (
    DeadlinePassedError,
    DrainingError,
    EngineStoppedError,
    PromptError,
    QueueFullError,
    RequestCancelledError,
    SettingError,
)
from allaprima.serving.api.errors import ApiError
from allaprima.serving.api.pictures import encoded
from allaprima.serving.api.request_parser import ParsedRequest
from allaprima.serving.api.request_stream import RequestProgress
from allaprima.serving.api.schemas import Account, ImageItem, ImagesReply
from allaprima.serving.handle import Draft

RETRY = 5.0
"""Seconds after which another server may have taken this one's place."""


def number(value: float | None) -> float | None:
    """JSON has no nan and no infinity."""
    return value if value is not None and math.isfinite(value) else None


def usual_threshold(parsed: ParsedRequest, k: int, result: Result) -> float | None:
    """Return what the draft would have been compared with if there were no load; None where nothing was lowered."""
    own = parsed.requests[k].policy.threshold
    return own if own is not None and result.threshold is not None and result.threshold < own else None


def text_chunks(parsed: ParsedRequest, k: int, result: Result) -> dict[str, str]:
    """Return what a PNG carries: the same as the command line's, so that `allaprima show --repeat` paints it again."""
    policy = parsed.requests[k].policy
    if usual_threshold(parsed, k, result) is not None and result.threshold is not None:
        policy = policy if isinstance(policy, ThresholdPolicy) else Capped(policy, result.threshold)
    model_record = parsed.model_record
    made = record(
        result, model_record.card, parsed.mode, parsed.asked, model_record.fingerprints, policy, model_record.extras
    )
    return chunks(made)


def account(parsed: ParsedRequest, k: int, seen: RequestProgress) -> Account:
    """Of a picture that has ended."""
    asked, result = parsed.requests[k], seen.result
    if result is None:
        return Account(
            index=k, seed=asked.request.seed, score=None, threshold=None, decision=None, steps=None,
            seconds=number(seen.seconds), evaluations={}, compute_seconds={}, attempts=0, tries=0,
            calibrated=parsed.calibrated, error="cancelled" if seen.error is None else said(seen.error).message,
        )  # fmt: skip
    return Account(
        index=k,
        seed=result.request.seed,
        score=number(result.score),
        threshold=number(result.threshold),
        decision=None if result.decision is None else str(result.decision),
        steps=result.steps,
        seconds=number(seen.seconds),
        evaluations=dict(result.cost.evaluations),
        compute_seconds=dict(result.cost.seconds),
        attempts=result.attempts,
        tries=result.tries,
        usual_threshold=(usual := usual_threshold(parsed, k, result)),
        calibrated=parsed.calibrated and usual is None,
        warning=result.warning,
        error=result.error,
    )


def failed(seen: RequestProgress) -> bool:
    """Whether a picture that has ended is none."""
    return seen.result is None or seen.result.image is None


def refusal(seen: RequestProgress) -> ApiError:
    """Why there is no picture, as an answer."""
    if seen.error is not None:
        return said(seen.error)
    if seen.result is not None and seen.result.error is not None:
        return ApiError(500, "painting_failed", f"the picture could not be painted: {seen.result.error}")
    return _handed_back()


def _handed_back() -> ApiError:
    return ApiError(503, "handed_back", "the server goes down and gives this request back: ask again.", retry_after=RETRY)


def said(error: Exception) -> ApiError:
    """Return an engine's error as an answer."""
    if isinstance(error, QueueFullError):
        return ApiError(429, "queue_full", str(error), retry_after=error.retry_after)
    if isinstance(error, DrainingError):
        return ApiError(503, "draining", str(error), retry_after=RETRY)
    if isinstance(error, EngineStoppedError | RequestCancelledError):
        return _handed_back()
    if isinstance(error, DeadlinePassedError):
        return ApiError(504, "deadline", str(error), "adaptive.max_latency")
    if isinstance(error, PromptError):
        return ApiError(400, "invalid_prompt", str(error), "prompt")
    if isinstance(error, SettingError):
        return ApiError(400, "invalid_value", str(error))
    return ApiError(500, "painting_failed", f"the picture could not be painted: {type(error).__name__}: {error}")


def painted(parsed: ParsedRequest, k: int, seen: RequestProgress) -> ImageItem:
    """One picture. Encodes it: call it off the event loop."""
    result, data = seen.result, None
    if result is not None and result.image is not None:
        told = text_chunks(parsed, k, result) if parsed.kind == "png" else {}
        data = base64.b64encode(encoded(result.image, parsed.kind, parsed.compression, told)).decode()
    return ImageItem(b64_json=data, revised_prompt=parsed.revised, adaptive=account(parsed, k, seen))


def reply(parsed: ParsedRequest, seen: list[RequestProgress], model: str) -> ImagesReply:
    """All pictures. Raises `ApiError` when there is none of them."""
    if all(failed(s) for s in seen):
        raise refusal(seen[0])
    data = [painted(parsed, k, s) for k, s in enumerate(seen)]
    return ImagesReply.model_validate(
        {"created": int(time.time()), "data": data, "output_format": parsed.kind, "size": parsed.size, "model": model}
    )


def _event(parsed: ParsedRequest, kind: str, name: str, data: str | None, more: dict[str, Any]) -> dict[str, Any]:
    """Return what OpenAI's events have in common; tokens are nobody's here."""
    return {
        "type": f"{kind}.{name}", "b64_json": data, "created_at": int(time.time()), "size": parsed.size,
        "quality": "auto", "background": "opaque", "output_format": parsed.kind, **more,
    }  # fmt: skip


def partial_event(parsed: ParsedRequest, kind: str, k: int, draft: Draft) -> dict[str, Any]:
    """Return the draft, as the first partial image. `kind`: image_generation or image_edit. Encodes it."""
    data = base64.b64encode(encoded(draft.image, parsed.kind, parsed.compression)).decode()
    adaptive = {
        "index": k, "seed": parsed.requests[k].request.seed, "score": number(draft.score),
        "threshold": number(draft.threshold),
        "decision": str(draft.decision),
    }  # fmt: skip
    return _event(parsed, kind, "partial_image", data, {"partial_image_index": 0, "adaptive": adaptive})


def completed_event(parsed: ParsedRequest, kind: str, k: int, seen: RequestProgress) -> dict[str, Any]:
    """Return the picture. Encodes it."""
    made = painted(parsed, k, seen)
    tokens = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    usage = {**tokens, "input_tokens_details": {"image_tokens": 0, "text_tokens": 0}}
    more = {"usage": usage, "revised_prompt": parsed.revised, "adaptive": made.adaptive.model_dump()}
    return _event(parsed, kind, "completed", made.b64_json, more)
