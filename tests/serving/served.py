"""A service on a toy pair that reads any prompt, and a server of it on 127.0.0.1, for tests of the HTTP API."""

import contextlib
import dataclasses
import hashlib
import threading
import time

import torch
import uvicorn

from allaprima.calibration.artifact import Calibration
from allaprima.calibration.budget import Prices
from allaprima.core.errors import PromptError
from allaprima.diffusion.noising import Variance
from allaprima.pipeline import AdaptivePipeline
from allaprima.serving.api.app import create_app
from allaprima.serving.api.limits import Limits
from allaprima.serving.api.server import bound
from allaprima.serving.api.service import ImageService
from allaprima.serving.engine import Engine
from tests.toys import SETTINGS, Grey, Toy

TINY = dataclasses.replace(SETTINGS, height=8, width=8, sigma=Variance(0.5))
LOCAL = "http://127.0.0.1"


class Reader(Toy):
    """A toy that takes words: their hash is the grey; `0.3` is still .3."""

    def check_prompt(self, prompt):
        if not prompt.strip():
            raise PromptError("the prompt is empty: say what to paint.")
        if len(prompt) > 400:
            raise PromptError("the prompt has too many tokens: 400 are read.")

    def encode(self, prompts):
        return torch.tensor([[[grey(p)]] for p in prompts])

    def encode_images(self, images):
        return images.mean(1, keepdim=True)


class Looker(Grey):
    """An oracle with a name."""

    fingerprint = "grey"


def grey(prompt):
    try:
        value = float(prompt or 0)
        return value if 0 <= value <= 1 else 0.5
    except ValueError:
        return hashlib.sha256(prompt.encode()).digest()[0] / 255


def toy_pipe():
    """Greys, scored by their mean; no calibration."""
    return AdaptivePipeline(Reader(), Reader(0.2), Looker(), TINY)


def calibrated():
    """The same with scores from 0 to .99 behind its threshold: 4 mean steps."""
    pipe = toy_pipe()
    s = pipe.settings
    pipe.calibration = Calibration.make(
        [k / 100 for k in range(100)], 4.0, Prices.from_steps(s.student_steps, s.teacher_steps),
        pipe.student_settings(s), pipe.action_settings(s), pipe.fingerprints(), "0" * 64,
    )  # fmt: skip
    return pipe


def service(pipe=None, limits=None, engine=None, **more):
    """With a running engine unless one is given. Requests say `adaptive.threshold`, for the toy isn't calibrated."""
    pipe = pipe or toy_pipe()
    if engine is None:
        engine = Engine(pipe)
        engine.start()
    return ImageService(engine, pipe, limits or Limits.of(pipe.settings), **more)


@contextlib.contextmanager
def listening(app):
    """The app behind a real uvicorn; its address."""
    sock = bound("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, http="h11", loop="asyncio", lifespan="off", ws="none", log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"{LOCAL}:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def until(true, seconds=60.0):
    """Wait for something that another thread does; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


__all__ = ["LOCAL", "TINY", "Reader", "calibrated", "create_app", "grey", "listening", "service", "toy_pipe", "until"]
