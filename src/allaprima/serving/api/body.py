"""Bodies, read within their limits: bytes are counted as they come, whatever Content-Length says."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Never, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect
from starlette.types import Message

from allaprima.serving.api.errors import ApiError
from allaprima.serving.api.limits import Limits

M = TypeVar("M", bound=BaseModel)
FILES, FIELDS = 3, 64
"""Parts of a form."""
NESTED = re.compile(r"([a-z_]+)\[([a-z_]+)\]")
"""`adaptive[budget]`: how OpenAI's client writes a mapping into a form."""


class Held:
    """Bytes of all bodies that are being read or used at the moment."""

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0

    @asynccontextmanager
    async def counted(self, request: Request, cap: int, seconds: float) -> AsyncGenerator[Request, None]:
        """Return the request, refused as soon as its body exceeds `cap` (413), all bodies together exceed `most` (429), or
        `seconds` are over (408)."""
        said = request.headers.get("content-length", "0")
        if said.isdigit() and (len(said) > 12 or int(said) > cap):
            raise _too_large(said, cap)
        mine = 0
        deadline = asyncio.get_running_loop().time() + seconds

        async def receive() -> Message:
            nonlocal mine
            try:
                async with asyncio.timeout_at(deadline):
                    message = await request.receive()
            except TimeoutError:
                raise ApiError(408, "request_timeout", f"the body has not come within {seconds:g} s.") from None
            size = len(message.get("body", b""))
            mine += size
            self.bytes += size
            if mine > cap:
                raise _too_large(str(mine), cap)
            if self.bytes > self.most:
                raise ApiError(429, "busy", "the uploads of others fill the room for them: try again.", retry_after=1)
            return message

        try:
            yield Request(request.scope, receive)
        finally:
            self.bytes -= mine


def _too_large(size: str, cap: int) -> ApiError:
    return ApiError(413, "body_too_large", f"a body of {size} bytes: {cap} are possible. Ask for less at a time.")


def _refuse_constant(name: str) -> Never:
    raise ValueError(f"{name} is no JSON")


async def read_json(request: Request, kind: type[M], limits: Limits, held: Held) -> M:
    """Return a JSON body as a model. Raises `ApiError`."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise ApiError(415, "unsupported_media_type", f"Content-Type {content_type[:80]!r}: application/json is due.")
    async with held.counted(request, limits.body_bytes, limits.body_seconds) as counted:
        try:
            body = await counted.body()
            raw: Any = json.loads(body, parse_constant=_refuse_constant)
        except ClientDisconnect as e:
            raise ApiError(400, "invalid_json", "the body has not come to its end.") from e
        except (ValueError, RecursionError) as e:
            raise ApiError(400, "invalid_json", f"the body is no JSON: {type(e).__name__}: {str(e)[:200]}.") from e
    if not isinstance(raw, dict):
        raise ApiError(400, "invalid_json", f"the body is a {type(raw).__name__}: an object with a prompt is due.")
    return checked(kind, raw, strict=True)


@asynccontextmanager
async def read_form(
    request: Request, kind: type[M], limits: Limits, held: Held
) -> AsyncGenerator[tuple[M, dict[str, UploadFile]], None]:
    """Return a multipart body as a model and its files; they are closed in the end. Raises `ApiError`."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "multipart/form-data":
        raise ApiError(415, "unsupported_media_type", f"Content-Type {content_type[:80]!r}: multipart/form-data is due.")
    async with held.counted(request, limits.upload_bytes, limits.body_seconds) as counted:
        try:
            form = await counted.form(max_files=FILES, max_fields=FIELDS, max_part_size=limits.body_bytes)
        except ClientDisconnect as e:
            raise ApiError(400, "invalid_form", "the body has not come to its end.") from e
        except (HTTPException, MultiPartException) as e:
            said = str(getattr(e, "detail", None) or getattr(e, "message", e))
            raise ApiError(400, "invalid_form", f"the body is no form that can be read: {said[:200]}") from e
        except (ValueError, KeyError, AssertionError) as e:
            raise ApiError(400, "invalid_form", f"the body is no form: {type(e).__name__}: {str(e)[:200]}.") from e
        try:
            fields, files = sorted_parts(form)
            yield checked(kind, fields, strict=False), files
        finally:
            await form.close()


def sorted_parts(form: FormData) -> tuple[dict[str, Any], dict[str, UploadFile]]:
    """Fields, nested ones in their mappings, and files: `image` may be written `image[]`."""
    fields: dict[str, Any] = {}
    files: dict[str, UploadFile] = {}
    for key, value in form.multi_items():
        name = key.removesuffix("[]")
        nested = NESTED.fullmatch(name)
        if isinstance(value, UploadFile):
            _put(files, name, value)
        elif nested is not None:
            inner = fields.setdefault(nested[1], {})
            if not isinstance(inner, dict):
                raise ApiError(400, "invalid_value", f"{nested[1]} is given twice: once is due.", nested[1])
            _put(inner, nested[2], value)
        elif name == "adaptive":
            _put(fields, name, _mapping(name, value))
        else:
            _put(fields, name, value)
    return fields, files


def _put(where: dict[str, Any], name: str, value: Any) -> None:
    if name in where:
        several = " This model edits one picture at a time." if name == "image" else ""
        raise ApiError(400, "invalid_value", f"{name[:80]!r} is given twice: once is due.{several}", name[:80])
    where[name] = value


def _mapping(name: str, text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as e:
        raise ApiError(400, "invalid_value", f"{name}={text[:80]!r} is no JSON: an object is due.", name) from e


def checked(kind: type[M], raw: dict[str, Any], strict: bool) -> M:
    """Validate a body; the first fault as an `ApiError`."""
    try:
        return kind.model_validate(raw, strict=strict)
    except ValidationError as e:
        raise fault(e) from None


def fault(e: ValidationError) -> ApiError:
    """Return the first of pydantic's faults, in OpenAI's words."""
    first = e.errors(include_url=False, include_context=False)[0]
    param = ".".join(str(part) for part in first["loc"])[:120]
    if first["type"] == "extra_forbidden":
        return ApiError(400, "unknown_parameter", f"unknown parameter: {param!r}. /openapi.json lists what is known.", param)
    if first["type"] == "missing":
        return ApiError(400, "missing_required_parameter", f"{param} is missing: it is required.", param)
    return ApiError(400, "invalid_value", f"{param}={shown(first.get('input'))}: {first['msg']}.", param)


def shown(value: Any) -> str:
    """Return a wrong value as it was given; of a long one the beginning."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 80 else f"{value[:60]!r}... ({len(value)} characters)"
    if isinstance(value, list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
