"""The overhead benchmark's clock on the bundled pair: it sees the networks, whatever the card's oracle is."""

import time

import torch

from allaprima.pipeline import AdaptivePipeline
from benchmarks.overhead import NetworkClock


def test_the_clock_sees_every_network_and_no_more_than_the_run():
    pipe = AdaptivePipeline.from_card("emoji")
    clock = NetworkClock(pipe)
    begun = time.perf_counter()
    pipe("red apple, noto", seed=0, threshold=2.0, teacher_steps=1, batch_size=1)
    whole = time.perf_counter() - begun
    assert 0 < clock.seconds < whole
    before = clock.seconds
    assert pipe.oracle is not None
    pipe.oracle.score(torch.zeros(1, 3, 64, 64), ["x"])
    assert clock.seconds > before
