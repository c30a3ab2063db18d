"""A program: a toy pair served as `allaprima serve` does, until a signal. Arguments: seconds a step takes, drain seconds."""

import sys
import time

from served import TINY, Looker, Reader

from allaprima.pipeline import AdaptivePipeline
from allaprima.serving.api.app import create_app
from allaprima.serving.api.server import Running, bound
from allaprima.serving.api.service import ImageService
from allaprima.serving.engine import Engine

STEP, DRAIN = float(sys.argv[1]), float(sys.argv[2])


class Slow(Reader):
    @property
    def denoiser(self):
        quick = super().denoiser

        class Waits:
            evaluations_per_call = quick.evaluations_per_call
            unguided = quick.unguided

            def __call__(self, x_t, t, cond):
                time.sleep(STEP)
                return quick(x_t, t, cond)

        return Waits()


pipe = AdaptivePipeline(Slow(), Slow(0.2), Looker(), TINY)
engine = Engine(pipe)
service = ImageService(engine, pipe)
engine.start()
Running(service, create_app(service), bound("127.0.0.1", 0), DRAIN).run(lambda where: print(where, flush=True))
print("ended", flush=True)
