"""The routes.

| | |
|---|---|
| `GET /` , `/study/FILE` | the page, from the package by a fixed list |
| `GET /api/study` | questions and words; no token |
| `GET /api/next` | the pair to ask about, and progress |
| `GET /api/slots/SLOT/left`, `/right` | its pictures |
| `POST /api/slots/SLOT/vote` | `{"answers": {"alignment": "left", ...}, "seconds": 7.2}`; again: the vote that is there |
| `POST /api/slots/SLOT/skip` | give it back: a picture can't be shown |

An invitation's token comes as `Authorization: Bearer TOKEN` (the page has it from the link's fragment, which no browser
sends), so there is no cookie that another site's page could use. Refusals: `{"error": {"code", "message"}}`.
"""

# No postponed annotations here: FastAPI could not see the names inside functions that they speak of.

import json
import math
from collections.abc import Callable
from importlib import resources
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from allaprima.core.errors import SettingError
from allaprima.study.app.service import StudyService
from allaprima.study.votes import StudyError

BODY_BYTES = 4096
LONGEST_TOKEN = 200
POLICY = "; ".join(
    (
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' blob:", "connect-src 'self'",
        "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)  # fmt: skip
HEADERS = {
    "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-store",
}  # fmt: skip
SCRIPT = "text/javascript; charset=utf-8"
FILES = {
    "style.css": "text/css; charset=utf-8", "icon.svg": "image/svg+xml",
    **dict.fromkeys(("app.js", "server.js", "view.js"), SCRIPT),
}  # fmt: skip
STATUS = {
    "unknown_token": 401, "revoked": 403, "not_yours": 404, "not_found": 404, "picture_gone": 410, "disk_full": 507,
    "database_away": 503, "body_too_large": 413, "invalid": 400, "not_json": 415,
}  # fmt: skip
QUIET: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI's own telemetry stays off."""


def create_app(service: StudyService) -> FastAPI:
    """The application of a study."""
    app = FastAPI(title="allaprima study", docs_url=None, redoc_url=None, openapi_url=None, telemetry=QUIET)
    _pages(app)
    _api(app, service)
    _errors(app)
    return app


def _pages(app: FastAPI) -> None:
    def add(path: str, file: str, kind: str) -> None:
        content = resources.files("allaprima.study.pages").joinpath(file).read_bytes()

        async def page() -> Response:
            return Response(content, headers=HEADERS, media_type=kind)

        app.add_api_route(path, page, methods=["GET"], name=file)

    add("/", "index.html", "text/html; charset=utf-8")
    for file, kind in FILES.items():
        add(f"/study/{file}", file, kind)


def _api(app: FastAPI, service: StudyService) -> None:
    def who(request: Request) -> int:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token or len(token) > LONGEST_TOKEN:
            raise StudyError("unknown_token", "no invitation: open the link you were given.")
        return service.store.annotator(token.strip())

    # A function, not a coroutine: FastAPI asks it on a thread, since it reads the database.
    asking = Depends(who)

    @app.get("/api/study")
    async def study() -> Response:
        """What the page is told."""
        return JSONResponse(service.about(), headers=HEADERS)

    @app.get("/api/next")
    def next_pair(annotator: Annotated[int, asking]) -> Response:
        """The pair to ask about now."""
        return JSONResponse(service.state(annotator), headers=HEADERS)

    @app.get("/api/slots/{slot}/{side}")
    def picture(slot: str, side: str, annotator: Annotated[int, asking]) -> Response:
        """A side's picture."""
        return Response(service.picture(annotator, slot, side), headers=HEADERS, media_type="image/png")

    @app.post("/api/slots/{slot}/vote")
    async def vote(slot: str, request: Request, annotator: Annotated[int, asking]) -> Response:
        """Keep a vote."""
        answers, seconds = _ballot(await _body(request))

        def keep() -> dict[str, Any]:
            kept = service.vote(annotator, slot, answers, seconds)
            return {"first": kept.first, "feedback": service.feedback(annotator, slot, kept)}

        return JSONResponse(await run_in_threadpool(keep), headers=HEADERS)

    @app.post("/api/slots/{slot}/skip")
    def skip(slot: str, annotator: Annotated[int, asking]) -> Response:
        """Give a pair back."""
        service.store.give_back(annotator, slot)
        return JSONResponse({}, headers=HEADERS)


async def _body(request: Request) -> dict[str, Any]:
    """A small JSON object; its bytes are counted as they come. Raises `StudyError`."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise StudyError("not_json", "a vote is application/json.")
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > BODY_BYTES:
                raise StudyError("body_too_large", f"a body of more than {BODY_BYTES} bytes: a vote is far smaller.")
        raw: Any = json.loads(body)
    except ClientDisconnect as e:
        raise StudyError("invalid", "the body has not come to its end.") from e
    except (ValueError, RecursionError) as e:
        raise StudyError("invalid", "the body is no JSON.") from e
    if not isinstance(raw, dict):
        raise StudyError("invalid", "the body is no JSON object.")
    return raw


def _ballot(raw: dict[str, Any]) -> tuple[dict[str, Any], float]:
    odd = sorted(raw.keys() - {"answers", "seconds"})
    answers, seconds = raw.get("answers"), raw.get("seconds", math.nan)
    if odd or not isinstance(answers, dict) or isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise StudyError("invalid", "answers (by question) and seconds are due, nothing else.")
    return answers, float(min(seconds, 1e9)) if isinstance(seconds, int) else seconds


def _errors(app: FastAPI) -> None:
    def refusal(status: int, code: str, message: str) -> JSONResponse:
        said = message.encode("utf-8", "replace").decode()
        return JSONResponse({"error": {"code": code, "message": said}}, status, HEADERS)

    handlers: dict[type[Exception], Callable[[Exception], JSONResponse]] = {
        StudyError: lambda e: refusal(STATUS.get(getattr(e, "code", ""), 500), getattr(e, "code", "study"), str(e)),
        SettingError: lambda e: refusal(400, "invalid", str(e)),
        HTTPException: lambda e: refusal(getattr(e, "status_code", 400), "not_found", "nothing is here."),
        Exception: lambda _: refusal(500, "internal", "something broke in this server; its log says what."),
    }
    for kind, answer in handlers.items():

        def handle(request: Request, error: Exception, answer: Any = answer) -> Response:
            return answer(error)

        app.add_exception_handler(kind, handle)
