"""The demo page's routes beside a server that streams what a test tells it, as `serving.api` does."""

import base64
import contextlib
import io
import json
import threading
import time

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image

from allaprima.serving.api.demo import demo_router

TABLE = [{"budget": b, "share": (b - 3) / 14, "threshold": b / 20, "seconds": b / 10} for b in (3.0, 10.0, 15.0, 17.0)]
SETTINGS = {
    "card": "emoji", "width": 64, "height": 64, "student_steps": 3, "strategy": "regenerate", "threshold": 0.75,
    "examples": ["red apple, noto", "owl, fluent 3d"], "key_needed": False, "prompt_chars": 4000,
    "budget": {"unit": "steps", "default": 15.0, "table": TABLE},
    "scores": {"low": 0.3, "high": 0.9, "counts": [1, 4, 9, 7, 3, 1]},
}  # fmt: skip


def png(colour):
    out = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def refusal(status, code, message, **headers):
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status, "server_error")
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return JSONResponse(body, status, headers)


class FakeDemo:
    """`script(body, k) -> response or None` (paint); `go`: what the final waits for; `score`: of every draft."""

    def __init__(self, settings=SETTINGS, script=None, score=0.5, key=None):
        self.settings, self.script, self.score, self.key = dict(settings), script, score, key
        self.asked, self.left, self.go = [], 0, threading.Event()
        self.go.set()
        self.revised = None
        self.draft, self.final = png((200, 60, 40)), png((40, 90, 200))
        app = FastAPI()
        app.include_router(demo_router(lambda: self.settings))
        app.get("/v1/models")(self._models)
        app.post("/v1/images/generations")(self._paint)
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none"))

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 30
        while not self._server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}/"
        return self

    def __exit__(self, *_):
        self.go.set()
        self._server.should_exit = True
        self._thread.join(10)

    def _refused(self, request):
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return refusal(401, "invalid_api_key", "this API key is not known here: check it.")
        return None

    def _models(self, request: Request):
        return self._refused(request) or JSONResponse({"object": "list", "data": [{"id": "emoji", "object": "model"}]})

    async def _paint(self, request: Request):
        body = await request.json()
        said = self._refused(request)
        if said is None and self.script is not None:
            said = self.script(body, len(self.asked))
        self.asked.append(body)
        return said or StreamingResponse(self._events(body), media_type="text/event-stream")

    def _events(self, body):
        ended = False
        threshold = body.get("adaptive", {}).get("budget", 15) / 20
        decision = "accept" if self.score >= threshold else self.settings["strategy"]
        judged = {"index": 0, "seed": body["seed"], "score": self.score, "threshold": threshold, "decision": decision}
        try:
            yield event("partial_image", b64_json=self.draft, partial_image_index=0, adaptive=judged)
            while not self.go.wait(0.02):
                yield ": still painting\n\n"
            final, steps = (self.draft, 3) if decision == "accept" else (self.final, 17)
            account = {**judged, "steps": steps, "seconds": 1.25, "attempts": 1, "warning": None, "error": None}
            yield event("completed", b64_json=final, revised_prompt=self.revised, adaptive=account)
            ended = True
        finally:
            self.left += not ended


def event(name, **data):
    kind = f"image_generation.{name}"
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n"


@contextlib.contextmanager
def held(fake):
    """Finals wait until the block ends."""
    fake.go.clear()
    try:
        yield
    finally:
        fake.go.set()
