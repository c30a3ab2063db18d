"""The toy pair behind the command line, with an oracle that counts and may be broken."""

import torch
from command_line import allaprima as allaprima

from allaprima.core.errors import PromptError
from allaprima.models.cards.card import Card
from allaprima.pipeline import AdaptivePipeline
from tests import toys

SETTINGS = toys.SETTINGS.changed(height=8, width=8)  # A policy that looks at pictures needs more than four pixels.
SOURCE = {"source": ".", "steps": 2, "guidance_scale": 1, "solver": "consistency", "license": "none"}
CARD = Card.model_validate(
    {"name": "toy", "family": "toy", "description": "greys", "height": 8, "width": 8, "student": SOURCE, "teacher": SOURCE,
     "oracle": {"kind": "grey", "source": ".", "license": "none"}}
)  # fmt: skip


class Pair(toys.Toy):
    """A toy that refuses one prompt."""

    def check_prompt(self, prompt):
        if prompt == "7":
            raise PromptError("seven is not painted")


class Counting:
    """Scores by the mean grey, and counts the pictures; nan for prompts in `blind`, raises for those in `broken`."""

    name, cost = "grey", 1.0

    def __init__(self, blind=(), broken=(), fingerprint="grey-1"):
        self.blind, self.broken, self.fingerprint, self.seen = blind, broken, fingerprint, []

    def score(self, images, prompts):
        if any(p in self.broken for p in prompts):
            raise RuntimeError("no such weights")
        self.seen += list(dict.fromkeys(prompts))
        scores = images.mean((1, 2, 3))
        return torch.where(torch.tensor([p in self.blind for p in prompts]), torch.nan, scores)


def toy_pipeline(oracle, calibration=None, settings=SETTINGS):
    return AdaptivePipeline(Pair(), Pair(0.3), oracle, settings, calibration, CARD)


def serve(monkeypatch, oracle, calibration=None):
    """The command line's card is the toy pair from now on."""
    made = toy_pipeline(oracle, calibration)
    monkeypatch.setattr(AdaptivePipeline, "from_card", classmethod(lambda cls, card="emoji", **_: made))
    return oracle


def greys(n):
    """n different prompts, in no order: their greys are spread over 0..0.99."""
    return [f"{(i * 37 % n) / n * 0.99:.4f}" for i in range(n)]
