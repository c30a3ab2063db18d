"""Teacher score matching (arXiv 2410.23274, stage 1): a network, usually a smaller one, learns to say what the teacher says.

What it makes is a many-step model; it is the start of a small one-step student, without which distribution matching does
not converge.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from allaprima.core.types import Condition, Samples, Times
from allaprima.distill.loop import train
from allaprima.distill.losses.score_matching import (
    Prediction,
    draw_times,
    limited_weight,
    teacher_score_matching_loss,
)
from allaprima.distill.methods.common import SamplingDefaults, TrainingSetup, loop_config
from allaprima.distill.recipe import Strict
from allaprima.models.cards.card import Card


class ScoreMatchingOptions(Strict):
    """Of the method."""

    snr_limit: float | None = Field(default=5.0, gt=0)
    """lambda_t = min(SNR, limit), min-SNR's; null weighs all times alike."""
    drop: float = Field(default=0.1, ge=0, lt=1)
    """Share of prompts replaced by the empty one, so that guidance still works on what is made."""


def run(setup: TrainingSetup, options: ScoreMatchingOptions) -> nn.Module:
    """Train; returns the student's exported copy."""
    batch = setup.recipe.loop.train_batch_size
    weight = limited_weight(setup.schedule, options.snr_limit)

    def loss(model: nn.Module, emas: Mapping[str, nn.Module], g: torch.Generator) -> Tensor:
        x0, cond = setup.draw(batch, g)
        cond = cond.replaced(torch.rand(batch, generator=g) < options.drop, setup.null)
        t = draw_times(setup.schedule, batch, g, low=1e-3, whole=setup.whole_times)
        eps = setup.normal(x0, g)
        student, teacher = prediction(setup, model, cond), prediction(setup, setup.teacher.network, cond)
        return teacher_score_matching_loss(student, teacher, setup.schedule, x0, eps, t, weight)

    config = loop_config(setup.recipe.loop)
    return train(setup.student(), loss, config, setup.folder, setup.identity(), setup.watcher, devices=setup.devices)["use"]


def use(options: ScoreMatchingOptions, card: Card) -> SamplingDefaults:
    """As the teacher: it is a many-step model."""
    note = "It paints in as many steps as the teacher; distil it further with start=student."
    return SamplingDefaults(card.teacher.steps, card.teacher.guidance_scale, card.teacher.solver, note)


def prediction(setup: TrainingSetup, network: nn.Module, cond: Condition) -> Prediction:
    """Return the unguided clean prediction for prompts `cond`."""
    denoise = setup.denoiser(network)

    def predict(x_t: Samples, t: Times) -> Samples:
        return denoise(x_t, t, cond)

    return predict
