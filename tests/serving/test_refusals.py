"""What is refused, how, and that nothing is asked of the engine for it."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from scripted import ScriptedEngine
from served import LOCAL, create_app, service
from starlette.testclient import TestClient

from allaprima.core.errors import DeadlinePassedError, DrainingError, PictureFailedError, QueueFullError, SettingError
from allaprima.serving.api.limits import Limits
from allaprima.serving.handle import Failed

ASK = {"prompt": "an owl", "adaptive": {"threshold": 0.5}}


@pytest.fixture
def engine():
    return ScriptedEngine()


@pytest.fixture
def api(engine):
    return TestClient(create_app(service(engine=engine)), base_url=LOCAL)


def refused(answer, status, code=None, param=None):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert code is None or error["code"] == code, error
    assert param is None or error["param"] == param, error
    assert error["type"] == ("server_error" if status >= 500 else error["type"])
    return error


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "x" * 4001}, "prompt"),
        ({"negative_prompt": "x" * 4001}, "negative_prompt"),
        ({"n": 10**9}, "n"),
        ({"n": 0}, "n"),
        ({"n": -1}, "n"),
        ({"n": True}, "n"),
        ({"n": "2"}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": 10**4000}, "n"),
        ({"size": "8"}, "size"),
        ({"size": "9x8"}, "size"),
        ({"size": "0x8"}, "size"),
        ({"size": "-8x8"}, "size"),
        ({"size": "99999x99999"}, "size"),
        ({"size": "32x16"}, "size"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**53}, "seed"),
        ({"seed": 2**53 - 1, "n": 2}, "seed"),
        ({"num_inference_steps": 101}, "num_inference_steps"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"guidance_scale": 101}, "guidance_scale"),
        ({"guidance_scale": "3"}, "guidance_scale"),
        ({"output_format": "gif"}, "output_format"),
        ({"response_format": "url"}, "response_format"),
        ({"partial_images": 1}, "partial_images"),
        ({"stream": True, "partial_images": 4}, "partial_images"),
        ({"adaptive": 5}, "adaptive"),
        ({"adaptive": {"treshold": 1}}, "adaptive.treshold"),
        ({"adaptive": {"strategy": "repaint"}}, "adaptive.strategy"),
        ({"adaptive": {"max_latency": 0}}, "adaptive.max_latency"),
        ({"adaptive": {"max_latency": 0.0999}}, "adaptive.max_latency"),
        ({"adaptive": {"max_latency": 5e-324}}, "adaptive.max_latency"),
        ({"adaptive": {"threshold": 1, "budget": 5}}, "adaptive"),
        ({"adaptive": {"budget": 5}}, "adaptive"),
        ({"adaptive": {}}, "adaptive"),
        ({"n": 10, "size": "16x16", "num_inference_steps": 100}, "n"),
        ({"model": "x" * 513}, "model"),
        ({"strength": 0.5}, "strength"),
        ({"image_url": "http://127.0.0.1/x.png"}, "image_url"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"\ud800": 1}, None),
    ],
)
def test_fields_out_of_range(api, engine, change, param):
    answer = api.post(
        "/v1/images/generations", content=json.dumps({**ASK, **change}), headers={"Content-Type": "application/json"}
    )
    if change.get("n") == 10**4000:
        refused(answer, 400, "limit_exceeded")
    else:
        refused(answer, 400, None, param)
    assert not engine.handles


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"5", b"null", b'"x"', b'{"prompt": "x", "guidance_scale": NaN}', b"\xff\xfe", b"\x00" * 9,
        b'{"prompt": "x", "guidance_scale": 1e999}', b'{"prompt": "x", "adaptive": {"threshold": Infinity}}',
        b"[" * 60_000, b'{"a":' * 20_000, b'{"prompt": "x", "n": ' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_bodies_that_are_no_request(api, engine, body):
    answer = api.post("/v1/images/generations", content=body, headers={"Content-Type": "application/json"})
    refused(answer, 400)
    assert not engine.handles


def test_types_of_bodies(api):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        refused(api.post("/v1/images/generations", content=b"{}", headers={"Content-Type": kind}), 415)
        if kind != "multipart/form-data":
            refused(api.post("/v1/images/edits", content=b"{}", headers={"Content-Type": kind}), 415)
    refused(
        api.post("/v1/images/edits", content=b"{}", headers={"Content-Type": "multipart/form-data"}), 400, "invalid_form"
    )


def test_bytes_are_counted_not_believed(api, engine):
    limits = service().limits

    def endless():
        for _ in range(100):
            yield b" " * 2**16
            sent.append(1)

    sent = []
    answer = api.post("/v1/images/generations", content=endless(), headers={"Content-Type": "application/json"})
    refused(answer, 413, "body_too_large")
    said = api.post(
        "/v1/images/generations",
        content=b"{}",
        headers={"Content-Type": "application/json", "Content-Length": "1" + "0" * 30},
    )
    refused(said, 413, "body_too_large")
    files = {"image": ("x.png", b"0" * (limits.upload_bytes + 1), "image/png")}
    refused(api.post("/v1/images/edits", data={"prompt": "x"}, files=files), 413, "body_too_large")
    assert not engine.handles


def test_room_for_uploads_is_shared(engine):
    limits = Limits(held_bytes=2000, pixels=1024)
    app = create_app(service(engine=engine, limits=limits))
    api = TestClient(app, base_url=LOCAL)
    body = json.dumps({**ASK, "prompt": "x" * 1500})
    held = app.state.service.held
    held.bytes = 1000
    answer = api.post("/v1/images/generations", content=body, headers={"Content-Type": "application/json"})
    refused(answer, 429, "busy")
    assert int(answer.headers["Retry-After"]) >= 1
    assert held.bytes == 1000
    held.bytes = 0
    refused(api.post("/v1/images/generations", json={**ASK, "n": 11}), 400, "limit_exceeded")
    assert held.bytes == 0


def png_header(width, height, mode=2, depth=8):
    """A PNG of this size whose pixels are not there."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, mode, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )  # fmt: skip


def image_bytes(kind, image, **more):
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def frames(kind):
    several = [Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (10, 200)]
    return image_bytes(kind, several[0], save_all=True, append_images=several[1:])


GREY = Image.new("RGB", (8, 8), (9, 9, 9))
UPLOADS = {
    "nothing": b"",
    "text": b"hello, I am a picture",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://127.0.0.1/x'/></svg>",
    "bomb": png_header(50_000, 50_000),
    "cut short": image_bytes("PNG", Image.effect_noise((64, 64), 90).convert("RGB"))[:900],
    "no pixels": png_header(8, 8),
    "gif": image_bytes("GIF", GREY),
    "tiff": image_bytes("TIFF", GREY),
    "two frames of png": frames("PNG"),
    "two frames of webp": frames("WEBP"),
    "16 bits": image_bytes("PNG", Image.fromarray(np.full((8, 8), 40000, np.uint16))),
    "transparent": image_bytes("PNG", Image.new("RGBA", (8, 8), (1, 2, 3, 0))),
}


@pytest.mark.parametrize("name", UPLOADS)
def test_uploads_that_are_no_picture(api, engine, name):
    files = {"image": ("x.png", UPLOADS[name], "image/png")}
    answer = api.post("/v1/images/edits", data={"prompt": "x", "adaptive": '{"threshold": 0.5}'}, files=files)
    refused(answer, 400, "invalid_image", "image")
    assert not engine.handles


@pytest.mark.parametrize(
    ("fields", "files", "param"),
    [
        ({}, {"image": GREY}, "prompt"),
        ({"prompt": "x"}, {}, "image"),
        ({"prompt": "x", "image": "http://127.0.0.1/x.png"}, {}, "image"),
        ({"prompt": "x"}, {"image": GREY, "other": GREY}, "other"),
        ({"prompt": "x"}, {"image": GREY, "mask": Image.new("L", (16, 8), 255)}, "mask"),
        ({"prompt": "x"}, {"image": GREY, "mask": Image.new("L", (8, 8), 0)}, "mask"),
        ({"prompt": "x", "strength": "1"}, {"image": GREY}, "strength"),
        ({"prompt": "x", "strength": "0"}, {"image": GREY}, "strength"),
        ({"prompt": "x", "strength": "nan"}, {"image": GREY}, "strength"),
        ({"prompt": "x", "n": "many"}, {"image": GREY}, "n"),
        ({"prompt": "x", "adaptive": "{"}, {"image": GREY}, "adaptive"),
        ({"prompt": "x", "adaptive": "5"}, {"image": GREY}, "adaptive"),
        ({"prompt": "x", "adaptive[budget]": "7"}, {"image": GREY}, "adaptive"),
        ({"prompt": "x", "adaptive[bugdet]": "7"}, {"image": GREY}, "adaptive.bugdet"),
        ({"prompt": ["x", "y"]}, {"image": GREY}, "prompt"),
    ],
)
def test_forms_out_of_range(api, engine, fields, files, param):
    several = {k: (f"{k}.png", image_bytes("PNG", v), "image/png") for k, v in files.items()} or {"": ("", b"")}
    answer = api.post("/v1/images/edits", data=fields, files=several)
    refused(answer, 400, None, param if files or "image" in fields else None)
    assert not engine.handles


def test_several_pictures_are_one_too_many(api):
    one = ("x.png", image_bytes("PNG", GREY), "image/png")
    answer = api.post("/v1/images/edits", data={"prompt": "x"}, files=[("image[]", one), ("image[]", one)])
    assert "one picture at a time" in refused(answer, 400, "invalid_value", "image")["message"]


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (QueueFullError("256 requests wait.", 3.2), 429, "queue_full"),
        (DrainingError("it drains."), 503, "draining"),
        (SettingError("these models can't."), 400, "invalid_value"),
    ],
)
def test_what_the_engine_does_not_take(api, engine, raised, status, code):
    engine.refusal = raised
    answer = api.post("/v1/images/generations", json=ASK)
    refused(answer, status, code)
    if status in (429, 503):
        assert int(answer.headers["Retry-After"]) >= (4 if status == 429 else 1)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(PictureFailedError("nan."), 500, "painting_failed"), (DeadlinePassedError("too late."), 504, "deadline")],
)
def test_what_fails_later(api, engine, error, status, code):
    given = engine.submit

    def failing(requests):
        handles = given(requests)
        handles[0].tell(Failed(error))
        return handles

    engine.submit = failing
    refused(api.post("/v1/images/generations", json=ASK), status, code)
    with api.stream("POST", "/v1/images/generations", json={**ASK, "stream": True}) as answer:
        lines = answer.read().decode().split("\n")
    assert lines[0] == "event: error"
    assert json.loads(lines[1].removeprefix("data: "))["error"]["code"] == code


def test_one_that_fails_does_not_take_the_others_along(api, engine):
    given = engine.submit

    def half(requests):
        handles = given(requests)
        engine.paint(handles[0])
        handles[1].tell(Failed(PictureFailedError("nan.")))
        return handles

    engine.submit = half
    first, second = api.post("/v1/images/generations", json={**ASK, "n": 2}).json()["data"]
    assert first["b64_json"]
    assert first["adaptive"]["error"] is None
    assert second["b64_json"] is None
    assert "nan." in second["adaptive"]["error"]


def test_places_and_methods_that_are_not_there(api):
    refused(api.get("/v2/images"), 404, "not_found")
    answer = api.get("/v1/images/generations")
    refused(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == "POST"
