"""The conformance tests' toy pair for replicas of a Ray cluster, with steps that may take time."""

import time

import torch

from allaprima.pipeline import AdaptivePipeline
from tests.toys import SETTINGS, Grey, Toy


class Named(Toy):
    fingerprint = "toy"

    def __init__(self, *args, wait=0.0, **more):
        super().__init__(*args, **more)
        self.wait = wait

    @property
    def denoiser(self):
        made, wait = super().denoiser, self.wait

        class Waits:
            evaluations_per_call = made.evaluations_per_call
            unguided = staticmethod(made.unguided)

            def __call__(self, x_t, t, cond):
                time.sleep(wait)
                return made(x_t, t, cond)

        return Waits()


class Looker(Grey):
    fingerprint = "grey"


def ray_pipe(wait=0.0):
    """As `conformance.toy_pipe`, with fingerprints; a guided step takes `wait` seconds more."""
    torch.set_num_threads(1)
    return AdaptivePipeline(Named(pinch=0.2, wait=wait), Named(0.3, pinch=0.2, wait=wait), Looker(), SETTINGS)
