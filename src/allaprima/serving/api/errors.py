"""Refusals as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`.

| status | code | when |
|---|---|---|
| 400 | invalid_value, unknown_parameter, invalid_json, limit_exceeded, ... | the request asks for what can't be had |
| 401 | invalid_api_key | no key, or a wrong one |
| 403 | forbidden | a server without keys, asked under another name than this machine's |
| 404, 405 | not_found, model_not_found, method_not_allowed | |
| 408, 413, 415 | request_timeout, body_too_large, unsupported_media_type | bodies, before they are in memory |
| 429 | queue_full, client_queue_full, busy | with Retry-After |
| 500 | painting_failed | a picture that could be asked for could not be painted |
| 503 | draining, handed_back | going down; with Retry-After |
| 504 | deadline | not painted within `adaptive.max_latency` |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse

KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""`type` of an error by status; other 4xx are `invalid_request_error`, 5xx `server_error`."""


def _printable(text: str) -> str:
    """Text that UTF-8 can carry: half a surrogate pair, which JSON can name, becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


class ApiError(Exception):
    """An answer that is a refusal. `retry_after`: seconds after which the same request may succeed."""

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after = status, code, retry_after
        self.message, self.param = _printable(message), None if param is None else _printable(param)

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error body."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """`Retry-After` in whole seconds, at least 1, where there is something to wait for."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}

    def response(self) -> JSONResponse:
        """Return the answer."""
        return JSONResponse(self.body, self.status, self.headers)


def unknown_route(status: int, method: str, path: str, headers: Mapping[str, str] | None) -> JSONResponse:
    """Return what the router refuses: no such place, or no such method there."""
    if status == 405:
        error = ApiError(405, "method_not_allowed", f"{path} is not asked with {method}: /openapi.json says with what.")
    else:
        error = ApiError(status, "not_found", f"nothing is at {path}: /openapi.json lists what is here.")
    return JSONResponse(error.body, error.status, {**error.headers, **(headers or {})})
