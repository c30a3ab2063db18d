"""The benchmark of refusals: its server is full while it is asked, and every answer says so."""

import time

import pytest
from toys import SETTINGS, Grey, Toy

from allaprima.core.errors import ModelError
from allaprima.pipeline import AdaptivePipeline
from benchmarks import refusals


class Looker(Grey):
    """An oracle with a name."""

    fingerprint = "grey"


def test_a_full_server_refuses_with_the_time_to_come_again():
    pipe = AdaptivePipeline(Words(), Words(0.3), Looker(), SETTINGS.changed(height=8, width=8))
    with refusals.full(pipe) as port:
        seconds = refusals.refused(port, 10)
    assert len(seconds) == 10
    assert min(seconds) > 0


class Words(Toy):
    """Takes any words, and its time."""

    def encode(self, prompts):
        return super().encode(["0.5"] * len(prompts))

    @property
    def denoiser(self):
        inner = super().denoiser

        def x0(x_t, t, cond):
            time.sleep(0.05)
            return inner(x_t, t, cond)

        x0.evaluations_per_call = inner.evaluations_per_call
        x0.unguided = x0
        return x0


def test_another_answer_is_an_error(monkeypatch):
    pipe = AdaptivePipeline(Words(), Words(0.3), Looker(), SETTINGS.changed(height=8, width=8))
    with refusals.full(pipe) as port:
        monkeypatch.setattr(refusals, "BODY", b"{}")
        with pytest.raises(ModelError, match="429 with Retry-After"):
            refusals.refused(port, 1)
