"""What families with a transformer have alike: tokens of latents, a middle block, and a shift by the picture's size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from allaprima.diffusion.schedules import Flow
from allaprima.models.components.latents import downsampling
from allaprima.models.families.family import Bottleneck, FamilyBase
from allaprima.models.families.shift import Shift, read_shift

SIDE = 2
"""Latents a token, along one side, of FLUX and of those that took its tokens over."""


@dataclass(frozen=True, kw_only=True)
class TransformerFamily(FamilyBase):
    """A family whose network is a transformer on tokens of latents."""

    transformer: Any
    component = "transformer"
    picture_entry: ClassVar[int] = 1
    """Which of a block's outputs has the picture's tokens: a block says the prompt's first, where it has two streams."""

    fixed_side: ClassVar[int | None] = None
    """Latents a token, along one side, where no config says it."""

    @property
    def side(self) -> int:
        """Latents a token, along one side."""
        return self._side(self.transformer.config)

    def _side(self, config: Any) -> int:
        return int(config.patch_size) if self.fixed_side is None else self.fixed_side

    def bottleneck(self, network: Any) -> Bottleneck:
        """Return the picture's tokens after the middle block: there is no narrower place."""
        config, middle = network.config, (len(network.transformer_blocks) - 1) // 2
        width = int(config.num_attention_heads * config.attention_head_dim)
        return Bottleneck(f"transformer_blocks.{middle}", width, self.picture_entry, self._side(config))


@dataclass(frozen=True, kw_only=True)
class ShiftedFamily(TransformerFamily):
    """A family with tokens of 2 by 2 latents, whose schedule depends on how many of them a picture is."""

    schedule: Flow
    """At the largest size that the shift is given for; `schedule_at` knows the others."""
    shift: Shift
    fixed_side = SIDE

    def schedule_at(self, height: int, width: int) -> Flow:
        """Return the schedule for pictures of a size: larger ones spend more steps at high noise,
        where the shift says so."""
        factor = downsampling(self.vae.config) * SIDE
        return self.shift.flow((height // factor) * (width // factor))


def shifted(folder: Path, config: Mapping[str, Any], terminal: bool = False) -> dict[str, Any]:
    """Return what a scheduler's config says of a `ShiftedFamily`, as its fields.

    Raises `ModelError` as `read_shift` does.
    """
    shift = read_shift(folder, config, terminal)
    return {"schedule": shift.largest, "shift": shift, "prediction": "flow_prediction"}
