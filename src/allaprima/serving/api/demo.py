"""The demo page's routes: its files at `/` and `/demo/`, and `/demo/settings`.

The files are the package's own, by a fixed list: no name from a request ever reaches the disk. They run under a policy that
forbids inline scripts and everything from elsewhere, and text that would become markup.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from allaprima.serving.api.service import ImageService
from allaprima.serving.pages.settings import demo_settings

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A new version of the package must not meet an old script.
    "Cache-Control": "no-cache",
}
SCRIPT = "text/javascript; charset=utf-8"
FILES = {
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    **dict.fromkeys(("app.js", "gallery.js", "paint.js", "stage.js", "theme.js", "words.js"), SCRIPT),
}


def add_demo(app: FastAPI, service: ImageService) -> None:
    """The page of a service, at its application's `/`."""

    def settings() -> Mapping[str, Any]:
        keys, chars = bool(service.keys.named), service.limits.prompt_chars
        return demo_settings(service.pipe, service.name, keys, chars, service.engine.snapshot(), service.budget)

    app.include_router(demo_router(settings))


def demo_router(settings: Callable[[], Mapping[str, Any]]) -> APIRouter:
    """Routes to include in an application. `settings`: what `serving.pages.settings.demo_settings` says at the moment.

    None of them wants a key: the page asks for it, and what it shows then comes from the API.
    """
    router = APIRouter(include_in_schema=False)

    def add(path: str, file: str, kind: str) -> None:
        content = resources.files("allaprima.serving.pages").joinpath(file).read_bytes()

        async def page() -> Response:
            return Response(content, headers=HEADERS, media_type=kind)

        router.add_api_route(path, page, methods=["GET"], name=file)

    add("/", "index.html", "text/html; charset=utf-8")
    for file, kind in FILES.items():
        add(f"/demo/{file}", file, kind)

    @router.get("/demo/settings")
    async def told() -> JSONResponse:
        """Thresholds are looked up in thousands of scores: not on the event loop."""
        return JSONResponse(dict(await run_in_threadpool(settings)), headers={**HEADERS, "Cache-Control": "no-store"})

    return router
