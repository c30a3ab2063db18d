"""A toy pair for workers of a Ray cluster, and one that takes its worker down with it."""

import dataclasses
import os
import signal
import time
from pathlib import Path

import torch

from allaprima.diffusion.noising import Variance
from allaprima.pipeline import AdaptivePipeline
from tests.toys import SETTINGS, Grey, Toy

TINY = dataclasses.replace(SETTINGS, height=8, width=8, sigma=Variance(0.5))
THREADS = 1


class Named(Toy):
    """With a fingerprint."""

    def __init__(self, *args, name="toy", **more):
        super().__init__(*args, **more)
        self.fingerprint = name


class Deadly(Named):
    """Ends its process at the prompt 0.66; at 0.77 only the first process that comes by. Prompts take `wait` seconds."""

    def __init__(self, marker=None, wait=0.0, **more):
        super().__init__(**more)
        self.marker, self.wait = marker, wait

    def condition(self, prompts):
        time.sleep(self.wait)
        first = self.marker is not None and "0.77" in prompts and not Path(self.marker).exists()
        if first:
            Path(self.marker).touch()
        if first or "0.66" in prompts:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().condition(prompts)


class Scores(Grey):
    fingerprint = "grey"


def tiny_pipe(marker=None, wait=0.0, name="toy"):
    torch.set_num_threads(THREADS)
    return AdaptivePipeline(Deadly(marker, wait, pinch=0.2, name=name), Named(0.3, pinch=0.2), Scores(), TINY)


def digests(result, note):
    """What a test compares."""
    import hashlib

    image = None if result.image is None else hashlib.sha256(result.image.numpy().tobytes()).hexdigest()
    draft = None if result.draft is None else hashlib.sha256(result.draft.numpy().tobytes()).hexdigest()
    return note, result.request.index, image, draft, result.row(), os.getpid()
