"""A ControlNet (arXiv 2302.05543) for the teacher: the base is frozen, a copy of its encoder learns to heed a picture.

What it makes is a many-step conditional model; the student takes the same net unchanged (arXiv 2312.10835, section 4.3).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from allaprima.distill.loop import train
from allaprima.distill.losses.score_matching import denoising_loss, draw_times, limited_weight
from allaprima.distill.methods.adapters import Adapted, draw_with_map, fresh_net
from allaprima.distill.methods.common import SamplingDefaults, TrainingSetup, loop_config
from allaprima.distill.recipe import Strict
from allaprima.models.cards.card import Card


class ControlNetOptions(Strict):
    """Of the method."""

    map: str = "canny"
    """What it reads: `canny`, `colours`, `low-resolution`, `hole` (a picture with a mask cut out, and the mask), or
    `given` (what comes with the data)."""
    snr_limit: float | None = Field(default=5.0, gt=0)
    """lambda_t = min(SNR, limit), min-SNR's; null weighs all times alike."""
    snr_floor: float = Field(default=0.0, ge=0)
    """lambda_t is at least that. Where the picture tells the colours (super-resolution, inpainting) 1 makes a net heed them
    from the noisiest times on."""
    fit_steps: int = Field(default=300, ge=0)
    """Steps, before the training, in which the way from pixels learns what the UNet's first convolution says of the
    picture's latents (`methods.adapters.fit_embedding`); 0: ControlNet's own, random, beginning."""
    drop: float = Field(default=0.1, ge=0, lt=1)
    """Share of prompts replaced by the empty one, so that guidance works."""


def run(setup: TrainingSetup, options: ControlNetOptions) -> nn.Module:
    """Train; returns the net's exported copy."""
    batch = setup.recipe.loop.train_batch_size
    weight = limited_weight(setup.schedule, options.snr_limit, options.snr_floor)

    def loss(model: nn.Module, emas: Mapping[str, nn.Module], g: torch.Generator) -> Tensor:
        x0, cond = draw_with_map(setup, options.map, options.drop, g)
        t = draw_times(setup.schedule, batch, g, low=1e-3, whole=setup.whole_times)
        eps, adapted = setup.normal(x0, g), Adapted(setup, model)
        return denoising_loss(lambda x_t, t: adapted.predict(x_t, t, cond), setup.schedule, x0, eps, t, weight)

    config, model = loop_config(setup.recipe.loop), fresh_net(setup, options.map, fit_steps=options.fit_steps)
    return train(model, loss, config, setup.folder, setup.identity(), setup.watcher, devices=setup.devices)["use"]


def use(options: ControlNetOptions, card: Card) -> SamplingDefaults:
    """As the teacher."""
    note = f"It reads the map {options.map!r}, on the teacher and, unchanged, on its students."
    return SamplingDefaults(card.teacher.steps, card.teacher.guidance_scale, card.teacher.solver, note)
