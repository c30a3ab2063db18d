"""A painter behind OpenAI's images endpoints: `/images/generations`, and `/images/edits` to paint over a picture.

Seed, steps, guidance scale and negative prompt go by the names that vLLM-Omni gives them. Python's own HTTP client does: a
picture takes seconds, so that kept connections gain nothing, and a deadline over the whole answer needs a loop of one's own
anyway. Nothing is fetched from addresses that an answer names, no redirect is followed (it would carry the key along), and
no answer is read or decoded beyond what the picture asked for can need.

What may pass is tried again: 429 and 503 (after what `Retry-After` says), 408, other 5xx, no connection, no answer in time;
in between, a random share of 0.5, 1, 2, ... seconds up to 30. Any other refusal is final.
"""

from __future__ import annotations

import base64
import binascii
import email.utils
import hashlib
import http.client
import io
import json
import os
import random
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from allaprima.conditioning.prompt_inputs import EXTRA_PROMPTS
from allaprima.core.constants import NATIVE_SOLVER
from allaprima.core.errors import ModelError, PromptError, SettingError
from allaprima.data.images import as_tensor, png_bytes, to_pil
from allaprima.models.cards.card import RemoteSource
from allaprima.models.external.image_generator import GeneratedImage, GeneratorRequest, steps_for_strength

AGAIN = {408, 429, 500, 502, 503, 504}
"""Statuses that may pass."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds of backoff, before jitter."""
BYTES_PER_PIXEL = 8
"""Of an answer: four of an incompressible RGBA picture, base64 of it, and something over."""


@dataclass(frozen=True)
class _Refused(Exception):
    """An answer that is no picture; `again`: it may pass, after `wait` seconds if the server says."""

    message: str
    again: bool
    wait: float | None = None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """A redirect is an answer like any other, and no picture."""
        return


class OpenAIGenerator:
    """A server as an image generator (`models.external.image_generator`).

    Requests of one call go out side by side, `concurrency` at once.

    Raises `ModelError` for an address that isn't http, or a key that isn't in the environment.
    """

    waits = True
    """It waits for another machine, so that this one can do other things meanwhile (`serving.loaded_cascade`)."""

    def __init__(self, source: RemoteSource, sleep: Callable[[float], None] = time.sleep) -> None:
        self.source, self._sleep = source, sleep
        if urlsplit(source.url).scheme not in ("http", "https") or not urlsplit(source.url).netloc:
            raise ModelError(f"remote.url={source.url!r}: an address is due, such as http://127.0.0.1:8000/v1.")
        if source.key_env is not None and not os.environ.get(source.key_env):
            raise ModelError(f"the environment has no {source.key_env}, which remote.key_env names: export the key there.")
        self._opener = urllib.request.build_opener(_NoRedirect())

    @property
    def fingerprint(self) -> str:
        """Of address and model's name: what paints behind them can't be seen; a calibration trusts them to stand still."""
        return hashlib.sha256(f"{self.source.url}\x1f{self.source.model}".encode()).hexdigest()[:16]

    @property
    def paints_over(self) -> bool:
        """As the card says."""
        return self.source.edits

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """A server shows no hidden states: raises `ModelError`."""
        raise ModelError(
            f"{self.source.model!r} is remote and shows no hidden states of prompts: give an oracle that reads them itself,"
            " or oracle.encoder, a card whose text encoder does."
        )

    def check(self, request: GeneratorRequest) -> None:
        """Raise `PromptError` or `SettingError` for what can't be asked."""
        if not request.prompt.strip():
            raise PromptError("the prompt is empty: say what to paint.")
        if request.solver != NATIVE_SOLVER:
            raise SettingError(f"solver={request.solver!r}: a server paints with its own scheduler, {NATIVE_SOLVER!r}.")
        odd = next((n for n in (*EXTRA_PROMPTS, "clip_skip", "guidance_rescale") if getattr(request, n)), None)
        if odd is not None:
            raise SettingError(f"{odd}={getattr(request, odd)!r}: a server isn't told it. Leave it out.")
        if request.height * request.width > self.source.max_pixels:
            raise SettingError(
                f"{request.width}x{request.height} is more than remote.max_pixels={self.source.max_pixels}: ask for less."
            )

    def paint(self, requests: Sequence[GeneratorRequest], batch: int) -> list[GeneratedImage | Exception]:
        """One answer an ask, in order; an exception where it failed."""
        with ThreadPoolExecutor(min(self.source.concurrency, len(requests))) as pool:
            return list(pool.map(self._one, requests))

    def _one(self, request: GeneratorRequest) -> GeneratedImage | Exception:
        try:
            return self._insisted(request)
        except Exception as e:
            return e

    def _insisted(self, request: GeneratorRequest) -> GeneratedImage:
        for k in range(self.source.retries + 1):
            try:
                return GeneratedImage(self._once(request), request.steps, request.steps)
            except _Refused as e:
                tries = "" if k == 0 else f" (after {k + 1} tries)"
                too_long = e.wait is not None and e.wait > self.source.timeout
                if not e.again or k == self.source.retries or too_long:
                    said = f", which asks for {e.wait:g} s of patience" if too_long else ""
                    raise ModelError(f"{self.source.model!r} at {self.source.url}: {e.message}{said}{tries}.") from None
                # Full jitter: those who failed together don't come back together. What the server asks for is the least.
                self._sleep((e.wait or 0.0) + random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2**k)))
        raise AssertionError("the last try raises")

    def _once(self, request: GeneratorRequest) -> Tensor:
        deadline = time.monotonic() + self.source.timeout
        http_request = self._request(request)
        try:
            with self._opener.open(http_request, timeout=self.source.timeout) as answer:
                body = _read(answer, deadline, request.height * request.width * BYTES_PER_PIXEL + 2**20)
        except urllib.error.HTTPError as e:
            with e:
                raise _refusal(e) from None
        except (TimeoutError, urllib.error.URLError, http.client.HTTPException, OSError) as e:
            raise _Refused(f"no answer: {getattr(e, 'reason', None) or e or type(e).__name__}", True) from None
        return _picture(body, request)

    def _request(self, request: GeneratorRequest) -> urllib.request.Request:
        said: dict[str, Any] = {
            "model": self.source.model, "prompt": request.prompt, "n": 1, "size": f"{request.width}x{request.height}",
            "response_format": "b64_json", "seed": request.seed, "num_inference_steps": request.steps,
            "guidance_scale": request.guidance,
        }  # fmt: skip
        if request.negative_prompt:
            said["negative_prompt"] = request.negative_prompt
        base = self.source.url.rstrip("/")
        if request.image is None:
            url, kind, body = f"{base}/images/generations", "application/json", json.dumps(said).encode()
        else:
            # A server that counts as diffusers does takes the last `strength` of the steps: N means N here too.
            if self.source.strength:
                said |= {
                    "num_inference_steps": steps_for_strength(request.steps, request.strength),
                    "strength": request.strength,
                }
            kind, body = _form(said, png_bytes(to_pil(request.image), {}))
            url = f"{base}/images/edits"
        headers = {"Content-Type": kind, "Accept": "application/json", "User-Agent": "allaprima"}
        if self.source.key_env is not None:
            headers["Authorization"] = f"Bearer {os.environ.get(self.source.key_env, '')}"
        return urllib.request.Request(url, body, headers, method="POST")


def _read(answer: Any, deadline: float, most: int) -> bytes:
    """All of an answer, within its time and size."""
    parts, size = list[bytes](), 0
    while part := answer.read1(2**16):
        parts.append(part)
        size += len(part)
        if size > most:
            raise _Refused(f"an answer of more than {most} bytes, which no picture of this size needs", False)
        if time.monotonic() > deadline:
            raise _Refused("no whole answer in time (remote.timeout)", True)
    return b"".join(parts)


def _refusal(e: urllib.error.HTTPError) -> _Refused:
    try:
        said = " ".join(e.read(2000).decode("utf-8", "replace").split())[:200]
    except (OSError, http.client.HTTPException):
        said = ""
    return _Refused(f"status {e.code}{f', {said}' if said else ''}", e.code in AGAIN, _wait(e.headers.get("Retry-After")))


def _wait(said: str | None) -> float | None:
    """Seconds that `Retry-After` asks for: a number of them, or a date."""
    if said is None:
        return None
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _picture(body: bytes, request: GeneratorRequest) -> Tensor:
    """The answer's picture `(3, H, W)`, looked at before it is decoded."""
    try:
        (first, *_) = json.loads(body)["data"]
        if "b64_json" not in first:
            raise _Refused("an answer without b64_json: pictures are taken from answers, not fetched from addresses", False)
        data = base64.b64decode(first["b64_json"], validate=True)
    except (ValueError, KeyError, TypeError, binascii.Error) as e:
        raise _Refused(f"an answer that isn't OpenAI's: {type(e).__name__}: {e}"[:200], False) from None
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            if image.size != (request.width, request.height):
                raise _Refused(f"a picture of {image.width}x{image.height}, not {request.width}x{request.height}", False)
            image.load()
            return as_tensor(image)
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as e:
        raise _Refused(f"an answer whose picture can't be decoded: {e}"[:200], False) from None


def _form(fields: Mapping[str, Any], image: bytes) -> tuple[str, bytes]:
    """`multipart/form-data` (RFC 7578): its content type and body."""
    line = f"allaprima-{secrets.token_hex(16)}"
    parts = [f'--{line}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields.items()]
    head = (
        f'--{line}\r\nContent-Disposition: form-data; name="image"; filename="draft.png"\r\nContent-Type: image/png\r\n\r\n'
    )
    return f"multipart/form-data; boundary={line}", b"".join([*parts, head.encode(), image, f"\r\n--{line}--\r\n".encode()])
