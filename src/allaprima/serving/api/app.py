"""The application: OpenAI's images endpoints, models, health and metrics.

What a request goes through: who asks (headers alone), whether anything is taken, the body within its limits, its fields,
its cost, the pictures in it, the queue. Each may refuse before the next one allocates anything.
"""

# No postponed annotations here: FastAPI could not see the names inside functions that they speak of.

import time
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from allaprima._version import __version__
from allaprima.serving.api.answers import reply
from allaprima.serving.api.body import read_form, read_json
from allaprima.serving.api.document import FORM, GENERATION, METRICS, answers, document
from allaprima.serving.api.edge import Edge
from allaprima.serving.api.errors import ApiError, unknown_route
from allaprima.serving.api.events import EventStream, events
from allaprima.serving.api.pictures import opened, read_image, read_mask
from allaprima.serving.api.request_parser import UploadedImages
from allaprima.serving.api.request_stream import unless_left
from allaprima.serving.api.schemas import EditBody, GenerationBody, ImagesReply, ModelInfo, ModelList, State
from allaprima.serving.api.service import ImageService

GONE = 499
"""Nginx's word for a client that left; nobody reads it but logs and metrics."""
QUIET: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI's own telemetry stays off: `traces` has ours, and only when it is configured."""


def create_app(service: ImageService, pages: ASGIApp | None = None) -> FastAPI:
    """Return the application of a service; `pages` is mounted at `/`, behind everything here."""
    app = FastAPI(
        title="allaprima", version=__version__, docs_url=None, redoc_url=None, telemetry=QUIET,
        description="A few-step student paints first, an oracle looks, a teacher retouches what falls short.",
    )  # fmt: skip
    app.state.service = service
    _images(app, service)
    _models(app, service)
    _states(app, service)
    if pages is not None:
        app.mount("/", pages)
    _errors(app)
    app.add_middleware(Edge, answers=service.metrics.answers)
    document(app, service)
    return app


def _images(app: FastAPI, service: ImageService) -> None:
    @app.post(
        "/v1/images/generations", openapi_extra=GENERATION, response_model=ImagesReply, tags=["images"],
        responses=answers(400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504, stream=True),
    )  # fmt: skip
    async def generations(request: Request, client: Annotated[str, Depends(service.client)]) -> Response:
        """Paint a prompt."""
        service.check_open()
        body = await read_json(request, GenerationBody, service.limits, service.held)
        return await _paint(service, request, body, client, "image_generation", None)

    @app.post(
        "/v1/images/edits", openapi_extra=FORM, response_model=ImagesReply, tags=["images"],
        responses=answers(400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504, stream=True),
    )  # fmt: skip
    async def edits(request: Request, client: Annotated[str, Depends(service.client)]) -> Response:
        """Paint over a picture, or over the part of it that a mask leaves open."""
        service.check_open()
        async with read_form(request, EditBody, service.limits, service.held) as (body, files):
            service.parser.check(body)
            uploads = await service.decoded(partial(_uploads, service, body, files))
        return await _paint(service, request, body, client, "image_edit", uploads)


def _uploads(service: ImageService, body: EditBody, files: dict[str, UploadFile]) -> UploadedImages:
    """Return the pictures of a form. Raises `ApiError`."""
    odd = sorted(files.keys() - {"image", "mask"})
    if odd:
        raise ApiError(400, "unknown_parameter", f"unknown file {odd[0][:80]!r}: image and mask are known.", odd[0][:80])
    if "image" not in files:
        raise ApiError(400, "missing_required_parameter", "image is missing: a file is required.", "image")
    width, height = service.parser.size_of(body)
    most = service.limits.upload_pixels
    size = opened(files["image"].file, "image", most).size
    files["image"].file.seek(0)
    mask = None
    if "mask" in files:
        mask = read_mask(files["mask"].file, size, width, height, most)
    return UploadedImages(read_image(files["image"].file, width, height, most), mask)


async def _paint(
    service: ImageService,
    request: Request,
    body: GenerationBody | EditBody,
    client: str,
    kind: str,
    uploads: UploadedImages | None,
) -> Response:
    n = min(body.n or 1, service.limits.n)
    service.take_room(client, n)
    streaming = False
    try:
        parsed, stream = await service.submit(body, client, request.headers, uploads)
        if parsed.stream:
            streaming = True
            return EventStream(events(parsed, stream, kind), stream, lambda: service.give_room(client, n))
        async with stream:
            seen = await unless_left(stream.all(), request.receive)
        if seen is None:
            return Response(status_code=GONE)
        answer = await run_in_threadpool(lambda: reply(parsed, seen, service.name).model_dump_json())
        return Response(answer, media_type="application/json")
    finally:
        if not streaming:
            service.give_room(client, n)


def _models(app: FastAPI, service: ImageService) -> None:
    since = int(time.time())

    def model() -> ModelInfo:
        return ModelInfo(id=service.name, created=since, owned_by="allaprima", adaptive=service.about())

    @app.get("/v1/models", response_model=ModelList, tags=["models"], responses=answers(401, 403))
    async def models(client: Annotated[str, Depends(service.client)]) -> ModelList:
        """Return the card that is served, its settings, limits and calibration."""
        return ModelList(data=[model()])

    @app.get("/v1/models/{name}", response_model=ModelInfo, tags=["models"], responses=answers(401, 403, 404))
    async def one_model(name: str, client: Annotated[str, Depends(service.client)]) -> ModelInfo:
        """One card."""
        if name != service.name:
            raise ApiError(404, "model_not_found", f"model {name[:80]!r} is not served here: {service.name!r} is.", "model")
        return model()


def _states(app: FastAPI, service: ImageService) -> None:
    @app.get("/health", response_model=State, tags=["state"], responses=answers(503))
    async def health() -> State:
        """Whether the server is alive; it is while it goes down, too, but not without its engine."""
        service.check_alive()
        return State(status="draining" if service.draining else "ok")

    @app.get("/ready", response_model=State, tags=["state"], responses=answers(503))
    async def ready() -> State:
        """Whether it takes requests: 503 as soon as it goes down."""
        service.check_open()
        return State(status="ready")

    @app.get("/metrics", tags=["state"], response_class=Response, responses={**answers(401, 403), 200: METRICS})
    async def metrics(client: Annotated[str, Depends(service.client)]) -> Response:
        """Prometheus' text."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _errors(app: FastAPI) -> None:
    """Every refusal has OpenAI's body."""

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def routed(request: Request, error: HTTPException) -> JSONResponse:
        return unknown_route(error.status_code, request.method, request.url.path, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return ApiError(400, "invalid_value", f"{where}: {first['msg']}.", where).response()

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return ApiError(500, "internal_error", "something broke in this server; its log says what.").response()
