"""The grids of diffusers' FlowMatchEulerDiscreteScheduler: a shift, constant or by the picture's size, and a last time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allaprima.core.errors import ModelError
from allaprima.diffusion.schedules import Flow


@dataclass(frozen=True)
class Shift:
    """The resolution shift of a scheduler's config: one number, or a line through two numbers of tokens, exponentiated."""

    constant: float
    """Of all sizes, unless `line` is given."""
    line: tuple[float, float, float, float] | None = None
    """Fewest tokens, most tokens, and the logarithm of the shift at either (`base_shift`, `max_shift`)."""
    terminal: float | None = None
    """Where a grid's last evaluation falls (`shift_terminal`); None: where the shift has it."""

    def at(self, tokens: int) -> float:
        """The shift for a picture of so many tokens."""
        if self.line is None:
            return self.constant
        few, many, low, high = self.line
        return math.exp(low + (high - low) * (tokens - few) / (many - few))

    def flow(self, tokens: int) -> Flow:
        """The schedule for a picture of so many tokens."""
        return Flow(self.at(tokens), terminal=self.terminal)

    @property
    def largest(self) -> Flow:
        """The schedule at the largest size that the shift is given for."""
        return self.flow(1 if self.line is None else int(self.line[1]))


def read_shift(folder: Path, config: Mapping[str, Any], terminal: bool = False) -> Shift:
    """Of a FlowMatchEulerDiscreteScheduler. Raises `ModelError` for a grid that isn't known, or a `shift_terminal` unless
    `terminal` says that the family has one.
    """
    odd = [k for k in ("invert_sigmas", "stochastic_sampling", "use_karras_sigmas") if config.get(k)]
    odd += ["shift_terminal"] if config.get("shift_terminal") and not terminal else []
    if odd or config.get("time_shift_type", "exponential") != "exponential":
        name = odd[0] if odd else "time_shift_type"
        raise ModelError(
            f"{folder / 'scheduler'} has {name}={config[name]!r}: a shift, constant or by size, is what is known. Leave it"
            " out if the model was trained without."
        )
    last = config.get("shift_terminal") or None
    if not config.get("use_dynamic_shifting"):
        return Shift(float(config.get("shift", 1.0)), terminal=last)
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    few, many, low, high = (float(config.get(k) or v) for k, v in zip(names, (256, 4096, 0.5, 1.15), strict=True))
    return Shift(1.0, (few, many, low, high), last)
