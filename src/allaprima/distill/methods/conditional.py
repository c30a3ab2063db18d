"""Conditional diffusion distillation, CoDi (arXiv 2310.01407): few steps and a condition in one stage.

Two kinds. `adapter` (the paper's parameter-efficient one): the base is frozen; a net of ControlNet's shape learns at once to
heed a picture and to paint in few steps; several tasks share one base. `full`: a network of its own, all of whose weights
learn. Both begin as the base to the bit. Losses: `losses.conditional`.

Departures: prompts are dropped at times, so that guidance works on what is made (the paper's release swaps the two halves);
the paper's own sampler, deterministic on the grid, is DDIM here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from allaprima.core.types import Samples, Times
from allaprima.distill.loop import train
from allaprima.distill.losses.conditional import Predictor, conditional_loss
from allaprima.distill.methods.adapters import Adapted, draw_with_map, fresh_net
from allaprima.distill.methods.common import SamplingDefaults, TrainingSetup, loop_config
from allaprima.distill.recipe import Strict
from allaprima.models.cards.card import Card


class ConditionalOptions(Strict):
    """Of the method; defaults are the paper's."""

    map: str = "low-resolution"
    """The task: `low-resolution` (super-resolution), `hole` (inpainting), `canny`, `colours`; `given`: what comes with
    the data, such as the picture that an instruction changes."""
    kind: Literal["adapter", "full"] = "adapter"
    """What learns: an adapter on the frozen base, or a whole conditional UNet (`models.adapters.conditional_unet`)."""
    predictor: Predictor = "prev"
    """How the next point is made."""
    x_weight: float = Field(default=1.0, gt=0)
    """Of the distance to x0; never 0, or the student may collapse to a constant."""
    steps: int = Field(default=4, ge=1, le=50)
    """In which it paints."""
    grid_points: int = Field(default=50, ge=3, le=1000)
    """Times that t and s are drawn from, neighbours."""
    shared_t: bool = True
    """One t for the whole batch, better at 1 to 4 steps (the paper's ablation)."""
    target_ema: float = Field(default=0.95, ge=0, lt=1)
    guidance_scale: float = Field(default=1.0, ge=0)
    """Of the predictions in both terms; 1 is none, and half the work."""
    fit_steps: int = Field(default=300, ge=0)
    """Steps, before the training, in which the way from pixels learns what the UNet's first convolution says of the
    picture's latents (`methods.adapters.fit_embedding`); 0: a random beginning."""
    drop: float = Field(default=0.1, ge=0, lt=1)
    """Share of prompts replaced by the empty one; at a guidance scale other than 1 none is."""


def run(setup: TrainingSetup, options: ConditionalOptions) -> nn.Module:
    """Train; returns the net's exported copy."""
    batch, scale = setup.recipe.loop.train_batch_size, options.guidance_scale
    grid = torch.tensor(setup.schedule.timesteps(options.grid_points), dtype=torch.float64)
    drop = options.drop if scale == 1 else 0.0

    def loss(model: nn.Module, emas: Mapping[str, nn.Module], g: torch.Generator) -> Tensor:
        x0, cond = draw_with_map(setup, options.map, drop, g)
        count = 1 if options.shared_t else batch
        # The last time has no neighbour but the clean end, where there is no noise to compare.
        index = torch.randint(len(grid) - 1, (count,), generator=g).expand(batch)
        mine, slow, base = Adapted(setup, model), Adapted(setup, emas["target"]), setup.denoiser(setup.teacher.network)

        def teacher(x_t: Samples, t: Times) -> Samples:
            return base(x_t, t, cond)

        return conditional_loss(
            lambda x, t: mine.predict(x, t, cond, scale), lambda x, t: slow.predict(x, t, cond, scale), setup.schedule, x0,
            setup.normal(x0, g), grid[index], grid[index + 1], options.predictor, teacher, options.x_weight,
        )  # fmt: skip

    config = loop_config(setup.recipe.loop, target=options.target_ema)
    model = fresh_net(setup, options.map, options.kind == "full", options.fit_steps)
    return train(model, loss, config, setup.folder, setup.identity(), setup.watcher, devices=setup.devices)["use"]


def use(options: ConditionalOptions, card: Card) -> SamplingDefaults:
    """In few deterministic steps."""
    whose = "the teacher's own network" if options.kind == "adapter" else "a network of its own"
    note = f"It reads the map {options.map!r} and paints in {options.steps} steps on {whose}."
    scale = options.guidance_scale if options.guidance_scale != 1 else card.teacher.guidance_scale
    return SamplingDefaults(options.steps, scale, "ddim", note)
