"""What every method starts from: the teacher, the data, the student's network and the loop's settings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from allaprima.core.types import Condition, Samples, Times
from allaprima.diffusion.denoiser import NetworkDenoiser
from allaprima.diffusion.guidance import ClassifierFreeGuidance
from allaprima.diffusion.schedule import Schedule
from allaprima.distill.loop import LoopConfig, Progress
from allaprima.distill.losses.consistency import GuidedPrediction
from allaprima.distill.network import Note, adapted, cut, folder_of, identity
from allaprima.distill.recipe import LoopSettings, Recipe
from allaprima.distill.training_data import TrainingData
from allaprima.models.families.sd import SDModel

Watch = Callable[[Mapping[str, nn.Module], Progress], None]
"""Told at every checkpoint: EMA copies by name (`use` is what is exported), and how far the training has come."""


@dataclass(frozen=True)
class Use:
    """How what a method makes is painted with."""

    steps: int
    guidance: float
    solver: str
    words: str = ""
    """A sentence for the model page."""


@dataclass(frozen=True)
class Bench:
    """One training, ready to start."""

    teacher: SDModel
    data: TrainingData
    null: Condition
    """What the empty prompt is to the networks, one row."""
    recipe: Recipe
    folder: Path
    """Where checkpoints go; resumed from when it holds one."""
    watch: Watch | None = None
    note: Note | None = None
    """Told what the student's network is, where it isn't just what it starts from."""

    @property
    def schedule(self) -> Schedule:
        """The teacher's; a student has the same."""
        return self.teacher.schedule

    def identity(self) -> dict[str, Any]:
        """What a checkpoint belongs to: everything but the loop's settings, which the loop adds."""
        return {
            "method": self.recipe.method,
            "options": self.recipe.options,
            "start": self.recipe.start,
            "teacher": self.teacher.fingerprint,
            "data": self.data.identity,
            **identity(self.recipe),
        }

    def denoiser(self, network: nn.Module) -> NetworkDenoiser:
        """A network of the teacher's family and prediction type as a denoiser."""
        return NetworkDenoiser(partial(self.teacher.output, network), self.schedule, self.teacher.prediction)

    def guided(self, network: nn.Module, cond: Condition) -> GuidedPrediction:
        """The guided clean prediction for prompts `cond`, in one doubled forward pass."""
        denoise = ClassifierFreeGuidance(self.denoiser(network))

        def predict(x_t: Samples, t: Times, w: Times) -> Samples:
            return denoise(x_t, t, self.with_guidance(cond, w))

        return predict

    def with_guidance(self, cond: Condition, w: Times) -> Condition:
        """Prompts with the empty prompt for a negative, and guidance scales `w: (B,)`."""
        negative = {f"negative_{k}": v.expand_as(cond.tensors[k]) for k, v in self.null.tensors.items()}
        return Condition({**cond.tensors, **negative, "guidance_scale": w.float()})

    def student(self) -> nn.Module:
        """What a student starts from, trainable: the network of `start` or the teacher's, cut or with adapters on it."""
        recipe, own = self.recipe, self.teacher.unet
        start = own if recipe.start is None else load_start(recipe.start)
        if recipe.lora is not None:
            return adapted(start, recipe, self.note)
        if recipe.smaller:
            return trainable(cut(start, recipe, self.note), recipe.loop)
        return trainable(copy.deepcopy(start) if start is own else start, recipe.loop)


def load_start(start: str) -> nn.Module:
    """A UNet folder, or a model folder that holds `unet/`."""
    from allaprima.models.load import load_component

    return load_component(folder_of(start))


def trainable(unet: Any, loop: LoopSettings) -> nn.Module:
    """In training mode, with gradients, in the memory format that convolutions are fastest in."""
    unet.requires_grad_(True).train().to(memory_format=torch.channels_last)
    if loop.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


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
