"""The application: OpenAI's images endpoints, models, health and metrics.

What a request goes through: who asks (headers alone), whether anything is taken, the body within its limits, its fields,
its cost, the pictures in it, the queue. Each may refuse before the next one allocates anything.
"""

# No postponed annotations here: FastAPI could not see the names inside functions that they speak of.

import time
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from allaprima._version import __version__
from allaprima.serving.api.answers import reply
from allaprima.serving.api.asks import Given
from allaprima.serving.api.body import read_form, read_json
from allaprima.serving.api.document import FORM, GENERATION, METRICS, answers, document
from allaprima.serving.api.errors import ApiError, unknown_route
from allaprima.serving.api.events import EventStream, events
from allaprima.serving.api.pictures import opened, read_image, read_mask
from allaprima.serving.api.schemas import EditBody, GenerationBody, ImagesReply, Model, ModelList, State
from allaprima.serving.api.service import Service
from allaprima.serving.api.watch import unless_left

GONE = 499
"""Nginx's word for a client that left; nobody reads it but logs and metrics."""
QUIET = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI's own telemetry stays off: `traces` has ours, and only when it is configured."""


def create_app(service: Service, pages: ASGIApp | None = None) -> FastAPI:
    """The application of a service; `pages` is mounted at `/`, behind everything here."""
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
    app.add_middleware(_Counted, service=service)
    document(app, service)
    return app


def _images(app: FastAPI, service: Service) -> None:
    Client = Annotated[str, Depends(service.client)]

    @app.post(
        "/v1/images/generations", openapi_extra=GENERATION, response_model=ImagesReply, tags=["images"],
        responses=answers(400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504, stream=True),
    )  # fmt: skip
    async def generations(request: Request, client: Client) -> Response:
        """Paint a prompt."""
        service.check_open()
        body = await read_json(request, GenerationBody, service.limits, service.held)
        return await _paint(service, request, body, client, "image_generation", None)

    @app.post(
        "/v1/images/edits", openapi_extra=FORM, response_model=ImagesReply, tags=["images"],
        responses=answers(400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504, stream=True),
    )  # fmt: skip
    async def edits(request: Request, client: Client) -> Response:
        """Paint over a picture, or over the part of it that a mask leaves open."""
        service.check_open()
        async with read_form(request, EditBody, service.limits, service.held) as (body, files):
            service.book.check(body)
            given = await run_in_threadpool(_given, service, body, files)
        return await _paint(service, request, body, client, "image_edit", given)


def _given(service: Service, body: EditBody, files: dict[str, UploadFile]) -> Given:
    """The pictures of a form. Raises `ApiError`."""
    odd = sorted(files.keys() - {"image", "mask"})
    if odd:
        raise ApiError(400, "unknown_parameter", f"unknown file {odd[0][:80]!r}: image and mask are known.", odd[0][:80])
    if "image" not in files:
        raise ApiError(400, "missing_required_parameter", "image is missing: a file is required.", "image")
    width, height = service.book.size_of(body)
    most = service.limits.upload_pixels
    size = opened(files["image"].file, "image", most).size
    files["image"].file.seek(0)
    mask = None
    if "mask" in files:
        mask = read_mask(files["mask"].file, size, width, height, most)
    return Given(read_image(files["image"].file, width, height, most), mask)


async def _paint(
    service: Service, request: Request, body: GenerationBody | EditBody, client: str, kind: str, given: Given | None
) -> Response:
    n = min(body.n or 1, service.limits.n)
    service.take_room(client, n)
    streaming = False
    try:
        order, watch = await service.ask(body, client, request.headers, given)
        if order.stream:
            streaming = True
            return EventStream(events(order, watch, kind), watch, lambda: service.give_room(client, n))
        async with watch:
            seen = await unless_left(watch.all(), request.receive)
        if seen is None:
            return Response(status_code=GONE)
        answer = await run_in_threadpool(lambda: reply(order, seen, service.name).model_dump_json())
        return Response(answer, media_type="application/json")
    finally:
        if not streaming:
            service.give_room(client, n)


def _models(app: FastAPI, service: Service) -> None:
    Client = Annotated[str, Depends(service.client)]
    since = int(time.time())

    def model() -> Model:
        return Model(id=service.name, created=since, owned_by="allaprima", adaptive=service.about())

    @app.get("/v1/models", response_model=ModelList, tags=["models"], responses=answers(401, 403))
    async def models(client: Client) -> ModelList:
        """The card that is served, its settings, limits and calibration."""
        return ModelList(data=[model()])

    @app.get("/v1/models/{name}", response_model=Model, tags=["models"], responses=answers(401, 403, 404))
    async def one_model(name: str, client: Client) -> Model:
        """One card."""
        if name != service.name:
            raise ApiError(404, "model_not_found", f"model {name[:80]!r} is not served here: {service.name!r} is.", "model")
        return model()


def _states(app: FastAPI, service: Service) -> None:
    Client = Annotated[str, Depends(service.client)]

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
    async def metrics(client: Client) -> Response:
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


class _Counted:
    """Counts answers by route and status."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The route's own path: others are one, or every guess of a stranger would be a metric of its own.
                route = getattr(scope.get("route"), "path", "other")
                self._service.metrics.answers.labels(route, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counted)
