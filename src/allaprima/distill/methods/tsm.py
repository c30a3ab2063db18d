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
from allaprima.distill.methods.common import Bench, Use, loop_config
from allaprima.distill.recipe import Strict
from allaprima.models.card import Card


class Options(Strict):
    """Of the method."""

    snr_limit: float | None = Field(default=5.0, gt=0)
    """lambda_t = min(SNR, limit), min-SNR's; null weighs all times alike."""
    drop: float = Field(default=0.1, ge=0, lt=1)
    """Share of prompts replaced by the empty one, so that guidance still works on what is made."""


def run(bench: Bench, options: Options) -> nn.Module:
    """Train; returns the student's exported copy."""
    batch = bench.recipe.loop.train_batch_size
    weight = limited_weight(bench.schedule, options.snr_limit)

    def loss(model: nn.Module, emas: Mapping[str, nn.Module], g: torch.Generator) -> Tensor:
        x0, cond = bench.draw(batch, g)
        cond = cond.replaced(torch.rand(batch, generator=g) < options.drop, bench.null)
        t = draw_times(bench.schedule, batch, g, low=1e-3, whole=bench.whole_times)
        eps = bench.normal(x0, g)
        student, teacher = prediction(bench, model, cond), prediction(bench, bench.teacher.network, cond)
        return teacher_score_matching_loss(student, teacher, bench.schedule, x0, eps, t, weight)

    config = loop_config(bench.recipe.loop)
    return train(bench.student(), loss, config, bench.folder, bench.identity(), bench.watch, devices=bench.devices)["use"]


def use(options: Options, card: Card) -> Use:
    """As the teacher: it is a many-step model."""
    words = "It paints in as many steps as the teacher; distil it further with start=student."
    return Use(card.teacher.steps, card.teacher.guidance_scale, card.teacher.solver, words)


def prediction(bench: Bench, network: nn.Module, cond: Condition) -> Prediction:
    """The unguided clean prediction for prompts `cond`."""
    denoise = bench.denoiser(network)

    def predict(x_t: Samples, t: Times) -> Samples:
        return denoise(x_t, t, cond)

    return predict
