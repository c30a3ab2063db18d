"""Architecture-based students (arXiv 2305.15798, equation 5; arXiv 2312.10835, appendix B.2): fewer blocks, the same task.

`L = L_task + lambda_out ||eps_S - eps_T||^2 + lambda_feat sum_l ||h_S^l - h_T^l||^2`, on diffused data. Unlike `tsm` it
learns from the data as well, and imitates hidden states beside the output: `network=base|small|tiny` says what is left.

A narrow student's states have fewer channels than the teacher's. They are compared through learned 1x1 projections (as in
FitNets, arXiv 1412.6550), which train along, are kept in checkpoints, and are not part of what is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from allaprima.core.errors import SettingError
from allaprima.diffusion.noising import add_noise
from allaprima.diffusion.predictions import from_x0
from allaprima.distill.architecture import HiddenStates
from allaprima.distill.loop import train
from allaprima.distill.losses.architecture import ArchitectureLoss, architecture_loss
from allaprima.distill.losses.score_matching import draw_times
from allaprima.distill.methods.common import SamplingDefaults, TrainingSetup, loop_config
from allaprima.distill.recipe import Strict
from allaprima.models.cards.card import Card


class ArchitectureOptions(Strict):
    """Of the method; weights are the paper's."""

    output_weight: float = Field(default=1.0, ge=0)
    feature_weight: float = Field(default=1.0, ge=0)
    """0 leaves the hidden states out, which saves their projections in a narrow student."""
    drop: float = Field(default=0.1, ge=0, lt=1)
    """Share of prompts replaced by the empty one, so that guidance still works on what is made."""


class Projected(nn.Module):
    """A network and, by the names of its blocks, 1x1 convolutions from its hidden states to the teacher's channels."""

    def __init__(self, network: nn.Module, widths: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        self.network = network
        self.projections = nn.ModuleDict()
        for name, (mine, theirs) in widths.items():
            projection = nn.Conv2d(mine, theirs, 1, bias=False)
            # A narrow student begins as the teacher's first channels (`distill.weight_slicing`): its states are compared to
            # those.
            nn.init.eye_(projection.weight.data.view(theirs, mine))
            self.projections[name.replace(".", "-")] = projection

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the network's own output."""
        return self.network(*args, **kwargs)

    def projected(self, name: str, state: Tensor) -> Tensor:
        """`(B, C, H, W)` of a block -> with the teacher's channels; a state of equal width as it is."""
        name = name.replace(".", "-")
        return self.projections[name](state) if name in self.projections else state


def run(setup: TrainingSetup, options: ArchitectureOptions) -> nn.Module:
    """Train; returns the student's exported copy."""
    network = setup.student()
    widths = projections(network, setup.teacher.network) if options.feature_weight else {}
    model: Any = Projected(network, widths).train() if widths else network
    model.to(memory_format=torch.channels_last)

    def loss(model: nn.Module, emas: Mapping[str, nn.Module], g: torch.Generator) -> Tensor:
        return terms(setup, options, model, g).total

    config = loop_config(setup.recipe.loop)
    emas = train(model, loss, config, setup.folder, setup.identity(), setup.watcher, devices=setup.devices)
    made: Any = emas["use"]
    return made.network if widths else made


def use(options: ArchitectureOptions, card: Card) -> SamplingDefaults:
    """As the teacher: it is a many-step model."""
    note = "It paints in as many steps as the teacher; distil it further with start=student."
    return SamplingDefaults(card.teacher.steps, card.teacher.guidance_scale, card.teacher.solver, note)


def terms(setup: TrainingSetup, options: ArchitectureOptions, model: nn.Module, g: torch.Generator) -> ArchitectureLoss:
    """Return the loss of one step and its terms. `model`: the student's network, or that with projections."""
    batch = setup.recipe.loop.train_batch_size
    x0, cond = setup.draw(batch, g)
    cond = cond.replaced(torch.rand(batch, generator=g) < options.drop, setup.null)
    # From 1, the cleanest time networks are trained on: at 0 the noise they are asked for isn't there.
    t = draw_times(setup.schedule, batch, g, low=1e-3, whole=setup.whole_times)
    eps = setup.normal(x0, g)
    x_t = add_noise(x0, eps, t, setup.schedule)
    target = from_x0(setup.teacher.prediction, x0, x_t, setup.schedule.alpha(t), setup.schedule.sigma(t))
    network, teacher = model.network if isinstance(model, Projected) else model, setup.teacher.network
    blocks = matching_blocks(network, teacher) if options.feature_weight else {}
    with ExitStack() as taps:
        mine = taps.enter_context(HiddenStates(network, list(blocks)))
        theirs = taps.enter_context(HiddenStates(teacher, list(blocks.values())))
        student = setup.teacher.output(model, x_t, t, cond)
        with torch.no_grad():
            goal = setup.teacher.output(teacher, x_t, t, cond)
    states = {n: model.projected(n, h) if isinstance(model, Projected) else h for n, h in mine.outputs.items()}
    goals = {n: theirs.outputs[origin] for n, origin in blocks.items()}
    return architecture_loss(student, goal, target, states, goals, options.output_weight, options.feature_weight)


def matching_blocks(student: Any, teacher: Any) -> dict[str, str]:
    """Return the student's blocks -> the teacher's, read off the networks.

    A student's stages are the teacher's first ones, those of the highest resolution. So it may come from a folder, too.
    Raises `SettingError` for networks without such blocks, or a student with more than the teacher has.
    """
    stages = [len(getattr(n, "down_blocks", ())) for n in (student, teacher)]
    mids = [getattr(n, "mid_block", None) is not None for n in (student, teacher)]
    if not 0 < stages[0] <= stages[1] or mids[0] > mids[1]:
        raise SettingError(
            f"a student of {stages[0]} stages{' and a mid block' * mids[0]} can't imitate the hidden states of a teacher of"
            f" {stages[1]}{' and a mid block' * mids[1]}: start from a cut of the teacher, or set options.feature_weight=0."
        )
    names = {f"down_blocks.{i}": f"down_blocks.{i}" for i in range(stages[0])}
    if mids[0]:
        names["mid_block"] = "mid_block"
    dropped = stages[1] - stages[0]
    return names | {f"up_blocks.{i}": f"up_blocks.{i + dropped}" for i in range(stages[0])}


def projections(student: Any, teacher: Any) -> dict[str, tuple[int, int]]:
    """Return the student's blocks whose states have other channels than the teacher's: theirs and the teacher's."""
    found: dict[str, tuple[int, int]] = {}
    for name, origin in matching_blocks(student, teacher).items():
        mine, theirs = _channels(student, name), _channels(teacher, origin)
        if mine != theirs:
            found[name] = (mine, theirs)
    return found


def _channels(network: Any, block: str) -> int:
    """Of the hidden states of a block, highest resolution first in the config, lowest first among up blocks."""
    channels = list(network.config.block_out_channels)
    side, _, place = block.partition(".")
    return {"down_blocks": channels, "up_blocks": channels[::-1], "mid_block": channels[-1:]}[side][int(place or 0)]
