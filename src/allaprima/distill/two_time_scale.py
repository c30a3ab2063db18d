"""Two time-scales (arXiv 2405.14867, section 4.2): the critic steps at every iteration, the generator at every n-th.

The critic is the fake score and, if there is one, the discriminator's head. It must know the generator's samples better
than they change; then no paired data set is needed to hold the generator in place.

Checkpoints hold all networks, all optimizers, the generator's EMA copies and the counters. All randomness of an iteration
comes from one generator seeded with (seed, step), which the generator's loss uses before the critic's: a resumed training
equals an uninterrupted one to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from allaprima.core.errors import SettingError
from allaprima.distill.checkpoint import TrainingState
from allaprima.distill.devices import Devices
from allaprima.distill.loop import (
    LoopConfig,
    TrainingProgress,
    adamw,
    descend,
    learning_rate,
    run,
    step_generator,
    update_emas,
)
from allaprima.distill.shared_copy import shared_copy

Networks = Mapping[str, nn.Module]
"""`generator`, `fake_score` and, where there is one, `head`."""

NetworksLoss = Callable[[Networks, Mapping[str, nn.Module], torch.Generator], Tensor]
"""`(networks, the generator's emas, generator of this step) -> scalar loss`."""


@dataclass(frozen=True)
class TwoTimeScaleConfig:
    """Settings of the two time-scales."""

    loop: LoopConfig
    """`max_train_steps` counts the critic's steps, `learning_rate` is the generator's, `emas` move when it does."""
    generator_every: int = 5
    """The generator steps after every n-th step of the critic (the paper's: 5, for Stable Diffusion 10)."""
    fake_learning_rate: float | None = None
    """At its peak, with the loop's warm-up and decay. None: the generator's."""
    head_learning_rate: float | None = None
    """None: the fake score's."""

    def __post_init__(self) -> None:
        if self.generator_every < 1:
            raise SettingError(f"generator_every={self.generator_every!r} is out of range: at least 1; the paper's is 5.")
        for name in ("fake_learning_rate", "head_learning_rate"):
            rate = getattr(self, name)
            if rate is not None and not rate > 0:
                raise SettingError(f"{name}={rate!r} must be positive, or None for the other's.")

    def rates(self) -> dict[str, float]:
        """Peak learning rates by network."""
        fake = self.loop.learning_rate if self.fake_learning_rate is None else self.fake_learning_rate
        head = fake if self.head_learning_rate is None else self.head_learning_rate
        return {"generator": self.loop.learning_rate, "fake_score": fake, "head": head}

    def generator_steps(self, steps: int) -> int:
        """How often the generator has stepped after so many iterations."""
        return steps // self.generator_every


def train_two_time_scale(
    networks: Networks,
    generator_loss: NetworksLoss,
    critic_loss: NetworksLoss,
    config: TwoTimeScaleConfig,
    folder: Path,
    recipe: Mapping[str, Any],
    on_checkpoint: Callable[[Mapping[str, nn.Module], TrainingProgress], None] | None = None,
    stop_after_seconds: float | None = None,
    stop: Callable[[Mapping[str, nn.Module], int], bool] | None = None,
    devices: Devices | None = None,
) -> dict[str, nn.Module]:
    """Train `networks` in place; returns the generator's EMA copies. Resumes from `folder` when it holds a checkpoint.

    An iteration is (every n-th time) a step of the generator down `generator_loss`, then a step of fake score and head down
    `critic_loss`. Either loss may send gradients anywhere: only the networks whose turn it is move, and what else a backward
    pass has left is cleared before the next. `checkpoint.safetensors`, `curve.csv` (step, samples, seconds, critic_loss,
    generator_loss, lr), `on_checkpoint`, `stop_after_seconds` and `stop` are those of `loop.train`.

    Raises `SettingError` for networks of other names, `TrainingError` when a loss or a gradient stops being a number (no
    weight has moved then, and the last good checkpoint stays), or when the folder belongs to another recipe.
    """
    if not {"generator", "fake_score"} <= networks.keys() <= {"generator", "fake_score", "head"}:
        raise SettingError(f"networks {sorted(networks)}: 'generator' and 'fake_score' are due, and 'head' if there is one.")
    loop = config.loop
    devices = devices or Devices()
    generator = networks["generator"]
    emas = {name: devices.place(shared_copy(generator).requires_grad_(False)) for name in loop.emas}
    networks = {name: devices.place(network, again=True) for name, network in networks.items()}
    optimizers = {name: adamw(network, loop) for name, network in networks.items()}
    critic = [optimizer for name, optimizer in optimizers.items() if name != "generator"]

    def update(step: int) -> dict[str, float]:
        for name, optimizer in optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(loop, step) * config.rates()[name] / loop.learning_rate
        generators = [step_generator(loop.seed, step, part) for part in devices.parts]
        where = f"step {step}; the last good checkpoint is in {folder}"
        found: dict[str, float] = {}

        def turn(loss: NetworksLoss, whose: Sequence[torch.optim.Optimizer], what: str) -> float:
            return descend(lambda g: loss(networks, emas, g), generators, whose, loop, what, devices, networks.values())

        # At the end of n iterations, not at their beginning: by then the critic has had n looks at the generator.
        if (step + 1) % config.generator_every == 0:
            found["generator_loss"] = turn(generator_loss, [optimizers["generator"]], f"the generator's {where}")
            update_emas(emas, generator, loop, config.generator_steps(step))
        # `descend` clears its own networks' gradients first: nothing the generator's backward pass has left in the fake
        # score and the head (its adversarial loss runs through both) is taken for the critic's.
        found["critic_loss"] = turn(critic_loss, critic, f"the critic's {where}")
        return found

    identity = {
        "recipe": dict(recipe),
        "loop": loop.identity(devices.whole),
        "two_time_scale": {"generator_every": config.generator_every, "rates": config.rates(), "networks": sorted(networks)},
    }
    parts = TrainingState(networks, {f"optim.{name}": optimizer for name, optimizer in optimizers.items()}, emas)
    run(
        parts,
        update,
        ("critic_loss", "generator_loss"),
        loop,
        folder,
        identity,
        on_checkpoint,
        stop_after_seconds,
        stop,
        devices,
    )
    return emas
