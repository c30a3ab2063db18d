"""What a student's network is before its training: a smaller cut of what it starts from, or that with adapters on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from allaprima.core.errors import SettingError
from allaprima.core.files import fingerprint
from allaprima.distill.architecture import count_parameters, make_student
from allaprima.distill.recipe import Recipe
from allaprima.distill.shared_copy import shared_copy
from allaprima.models.components.lora import add_adapters

Note = Callable[[str], None]
"""Told, in a sentence, what the network is."""


def folder_of(start: str, component: str) -> Path:
    """Return the folder of a network: `start` itself, or the `unet/` (or `transformer/`: the family's `component`) of a
    model's."""
    folder = Path(start).expanduser()
    return folder / component if (folder / component).is_dir() else folder


def cut(network: nn.Module, recipe: Recipe, note: Note | None = None) -> nn.Module:
    """Return the recipe's `network` and `width` of this one, which stays as it is.

    Raises `SettingError` and `ModelError` as `architecture.make_student` does.
    """
    config: Any = network.config
    if "down_block_types" not in config:
        raise SettingError(
            f"network={recipe.network!r}, width={recipe.width:g} of a {type(network).__name__}: only UNets can be cut."
            " Leave both out."
        )
    made = make_student(network, recipe.network, recipe.width)
    if note is not None:
        note(f"network {recipe.network}, width {recipe.width:g}: {made}")
    return made.unet


def adapted(network: nn.Module, recipe: Recipe, note: Note | None = None) -> nn.Module:
    """Return a twin of `network` with the recipe's adapters on it, which are all that trains; it says what `network` says.

    The twin's own weights are those of `network`, not copies: they are frozen in both.
    """
    assert recipe.lora is not None
    made: Any = shared_copy(network.requires_grad_(False))
    add_adapters(made, recipe.lora.rank, recipe.lora.scale, recipe.lora.targets, recipe.lora.dropout, recipe.loop.seed)
    made.train().to(memory_format=torch.channels_last)
    if recipe.loop.gradient_checkpointing:
        made.enable_gradient_checkpointing()
    if note is not None:
        count = sum(p.numel() for p in made.parameters() if p.requires_grad)
        note(f"LoRA of rank {recipe.lora.rank}: {count:,} parameters train, {count_parameters(made) - count:,} stay")
    return made


def identity(recipe: Recipe, component: str) -> dict[str, Any]:
    """Return what the network adds to a training's identity; nothing for the plain one,
    as it was before there were others."""
    made: dict[str, Any] = {}
    if recipe.smaller:
        made["network"] = [recipe.network, recipe.width]
    if recipe.lora is not None:
        made["lora"] = recipe.lora.model_dump(mode="json")
        # Checkpoints don't hold the base, so it must be the same one when they are resumed (the teacher is named anyway).
        made["base"] = None if recipe.start is None else fingerprint(folder_of(recipe.start, component))
    return made
