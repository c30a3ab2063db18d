"""What every method starts from: the teacher, the data, the student's network and the loop's settings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from allaprima.core.errors import SettingError
from allaprima.core.types import Condition, Samples, Times
from allaprima.diffusion.denoiser import NetworkDenoiser
from allaprima.diffusion.schedules import DiscreteVP, Schedule
from allaprima.distill.devices import Devices
from allaprima.distill.loop import LoopConfig, TrainingProgress
from allaprima.distill.losses.consistency import GuidedPrediction
from allaprima.distill.network import Note, adapted, cut, folder_of, identity
from allaprima.distill.recipe import LoopSettings, Recipe
from allaprima.distill.training_data import TrainingData
from allaprima.models.families.family import Family, guidance_of

Watch = Callable[[Mapping[str, nn.Module], TrainingProgress], None]
"""Told at every checkpoint: EMA copies by name (`use` is what is exported), and how far the training has come."""


@dataclass(frozen=True)
class SamplingDefaults:
    """How what a method makes is painted with."""

    steps: int
    guidance: float
    solver: str
    note: str = ""
    """A sentence for the model page."""


@dataclass(frozen=True)
class SharedPartition:
    """What the students of a multi-student training share."""

    data: TrainingData
    """Everybody's."""
    folder: Path
    """Where pairs are kept, painted once for all."""


@dataclass(frozen=True)
class TrainingSetup:
    """One training, ready to start."""

    teacher: Family
    data: TrainingData
    null: Condition
    """What the empty prompt is to the networks, one row."""
    recipe: Recipe
    folder: Path
    """Where checkpoints go; resumed from when it holds one."""
    watch: Watch | None = None
    devices: Devices = field(default_factory=Devices)
    whole: SharedPartition | None = None
    """Of a multi-student training; `data` is this student's part."""
    note: Note | None = None
    """Told what the student's network is, where it isn't just what it starts from."""

    @property
    def schedule(self) -> Schedule:
        """The teacher's; a student has the same."""
        return self.teacher.schedule

    @property
    def whole_times(self) -> bool:
        """Whether networks know integer times alone: those of a VP schedule do, a flow's times are in [0, 1]."""
        return isinstance(self.schedule, DiscreteVP)

    def identity(self) -> dict[str, Any]:
        """What a checkpoint belongs to: everything but the loop's settings, which the loop adds."""
        return {
            "method": self.recipe.method,
            "options": self.recipe.options,
            "start": self.recipe.start,
            "teacher": self.teacher.fingerprint,
            "data": self.data.identity,
            **identity(self.recipe, self.teacher.component),
        }

    def denoiser(self, network: nn.Module) -> NetworkDenoiser:
        """A network of the teacher's family and prediction type as a denoiser."""
        return NetworkDenoiser(partial(self.teacher.output, network), self.schedule, self.teacher.prediction)

    def guided(self, network: nn.Module, cond: Condition) -> GuidedPrediction:
        """The guided clean prediction for prompts `cond`: one doubled forward pass, a plain one if guidance is embedded."""
        denoise = guidance_of(self.teacher, partial(self.teacher.output, network), network)

        def predict(x_t: Samples, t: Times, w: Times) -> Samples:
            return denoise(x_t, t, self.with_guidance(cond, w))

        return predict

    def with_guidance(self, cond: Condition, w: Times) -> Condition:
        """Prompts with the empty prompt for a negative, and guidance scales `w: (B,)`."""
        negative = {f"negative_{k}": v.expand_as(cond.tensors[k]) for k, v in self.null.tensors.items()}
        return Condition({**cond.tensors, **negative, "guidance_scale": w.float()}).to(self.devices.device)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Samples, Condition]:
        """Rows of the data, drawn with replacement, where this process computes."""
        latents, cond = self.data.draw(count, generator)
        return latents.to(self.devices.device), cond.to(self.devices.device)

    def normal(self, like: Samples, generator: torch.Generator) -> Samples:
        """Noise of a sample's shape; drawn on the CPU, so that it is the same on every device."""
        return torch.randn(like.shape, generator=generator).to(like.device)

    def student(self, prepare: Callable[[Any], Any] | None = None) -> nn.Module:
        """What a student starts from, trainable: the network of `start` or the teacher's, cut or with adapters on it.

        `prepare` makes another network of it before.
        """
        recipe, own = self.recipe, self.teacher.network
        start = own if recipe.start is None else load_start(recipe.start, self.teacher)
        plain = start if prepare is None else prepare(start)
        if recipe.lora is not None:
            if plain is not start:
                raise SettingError(
                    "lora: adapters sit on the network as it is, and these options make another one of it (embedded"
                    " guidance). Leave lora or the option out."
                )
            return adapted(plain, recipe, self.note)
        if recipe.smaller:
            return trainable(cut(plain, recipe, self.note), recipe.loop)
        return trainable(copy.deepcopy(plain) if plain is own else plain, recipe.loop)


def load_start(start: str, teacher: Family) -> nn.Module:
    """A network's folder, or a model's folder that holds `unet/` or `transformer/`."""
    from allaprima.models.components.loading import load_component

    return load_component(folder_of(start, teacher.component))


def trainable(network: Any, loop: LoopSettings) -> nn.Module:
    """In training mode, with gradients, in the memory format that convolutions are fastest in."""
    network.requires_grad_(True).train().to(memory_format=torch.channels_last)
    if loop.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    return network


def loop_config(loop: LoopSettings, **emas: float) -> LoopConfig:
    """The loop's settings with EMA copies by name; `use` is always there."""
    return LoopConfig(
        max_train_steps=loop.max_train_steps,
        train_batch_size=loop.train_batch_size,
        learning_rate=loop.learning_rate,
        warmup_steps=loop.warmup_steps,
        lr_scheduler=loop.lr_scheduler,
        adam_beta2=loop.adam_beta2,
        weight_decay=loop.weight_decay,
        max_grad_norm=loop.max_grad_norm,
        emas={"use": loop.use_ema, **emas},
        seed=loop.seed,
        checkpoint_seconds=loop.checkpoint_seconds,
        log_every=loop.log_every,
    )
