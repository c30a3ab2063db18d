"""The OpenAPI document: every answer there is, with its schema, and this server's own limits in it."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from allaprima.serving.api.limits import ALIAS, Limits
from allaprima.serving.api.schemas import EditBody, ErrorBody, GenerationBody
from allaprima.serving.api.service import ImageService

REF = "#/components/schemas/{model}"
WHY = {
    400: "The request asks for what can't be had.",
    401: "No key, or a wrong one.",
    403: "A server without keys, asked under another name than this machine's, or by another site's page.",
    404: "No such model.",
    408: "The body has not come in time.",
    413: "The body is too large.",
    415: "The body is of another type.",
    429: "The queue, the client's share of it, or the room for uploads is full.",
    500: "The picture could not be painted.",
    503: "The server goes down.",
    504: "Not painted within adaptive.max_latency.",
}
RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string", "pattern": "^[0-9]+$"}, "required": True}}


def _body(kind: str, model: str) -> dict[str, Any]:
    schema = {"$ref": REF.format(model=model)}
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema}}}}


GENERATION = _body("application/json", "GenerationBody")
FORM = _body("multipart/form-data", "EditForm")
EVENT = {
    "type": "object",
    "description": "image_generation.partial_image, image_generation.completed, image_edit.* or error; the data is JSON.",
    "properties": {"event": {"type": "string"}, "data": {"type": "string", "contentMediaType": "application/json"}},
    "required": ["event", "data"],
}
METRICS = {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus' text."}


def answers(*statuses: int, stream: bool = False) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for these refusals; `stream`: the 200 may be server-sent events too."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        found[status] = {"model": ErrorBody, "description": WHY[status]}
        if status in (429, 503):
            found[status]["headers"] = RETRY
    if stream:
        found[200] = {
            "description": "Pictures; with stream=true as events.",
            "content": {"text/event-stream": {"itemSchema": EVENT}},
        }
    return found


def document(app: FastAPI, service: ImageService) -> None:
    """Make `app.openapi()` tell the bodies, the limits and the keys, which FastAPI can't see."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            schemas = made["components"]["schemas"]
            _, bodies = models_json_schema(
                [(GenerationBody, "validation"), (EditBody, "validation")], ref_template=REF
            )  # fmt: skip
            schemas |= bodies["$defs"]
            schemas["EditForm"] = _form(schemas.pop("EditBody"))
            for name in ("GenerationBody", "EditForm"):
                _limited(schemas[name], service.limits, service.name)
            if service.keys.named:
                made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                for path, methods in made["paths"].items():
                    if path not in ("/health", "/ready"):
                        for method in methods.values():
                            method["security"] = [{"key": []}]
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = openapi


def _form(body: dict[str, Any]) -> dict[str, Any]:
    """The fields of an edit with its files."""
    file = {"type": "string", "format": "binary"}
    mask = {**file, "description": "Painted anew where it is transparent; without transparency where it is white."}
    files = {"image": {**file, "description": "PNG, JPEG or WebP of one frame."}, "mask": mask}
    properties = {**files, **body["properties"]}
    return {**body, "title": "EditForm", "properties": properties, "required": ["image", *body["required"]]}


def _limited(body: dict[str, Any], limits: Limits, name: str) -> None:
    """This server's caps, and what it has alone."""
    caps: dict[str, dict[str, Any]] = {
        "model": {"enum": [name, ALIAS] if name != ALIAS else [name]},
        "response_format": {"enum": ["b64_json"]},
        "prompt": {"maxLength": limits.prompt_chars},
        "negative_prompt": {"maxLength": limits.prompt_chars},
        "n": {"maximum": limits.n},
        "num_inference_steps": {"maximum": limits.steps},
    }
    for field, cap in caps.items():
        entry = body["properties"][field]
        for variant in entry.get("anyOf", [entry]):
            if variant.get("type") != "null":
                variant |= cap
