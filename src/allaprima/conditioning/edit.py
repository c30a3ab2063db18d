"""Editing: a picture, a new prompt, and how much may change (SDEdit, arXiv 2108.01073); a mask keeps the rest (inpainting).

The picture is noised up to a share `strength` of the schedule and painted from there. A student takes all its steps from
that time on (as latent consistency models do); the teacher takes the last `strength` of its grid, as diffusers'
image-to-image pipelines do, so that 20 steps at strength .6 are 12 evaluations.

With a mask, what lies outside is the picture's own after every step: its latents with the picture's noise up to the step's
time (as in diffusers' inpainting pipeline with four latent channels), and its own pixels at the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from allaprima.core.errors import SettingError
from allaprima.diffusion.solvers.solver import Step

DEFAULT_STRENGTH = 0.8
"""Diffusers' for image to image; with a mask it is 1."""


@dataclass(frozen=True)
class ImageInput:
    """A picture `(3, H, W)`, or a mask `(1, H, W)`, in [0, 1], that is read when its turn comes. Equal by content."""

    digest: str
    read: Callable[[], Tensor] = field(compare=False, repr=False)

    @classmethod
    def of(cls, image: Tensor) -> ImageInput:
        """One that is in memory."""
        return cls.read_by(lambda: image)

    @classmethod
    def read_by(cls, read: Callable[[], Tensor]) -> ImageInput:
        """One that is read now, for its digest, and again when its turn comes."""
        pixels = (read().clamp(0, 1) * 255).round().byte().contiguous()
        return cls(hashlib.sha256(f"{tuple(pixels.shape)}".encode() + pixels.numpy().tobytes()).hexdigest()[:16], read)


@dataclass(frozen=True)
class Edit:
    """What an edit starts from. Raises `SettingError` for a strength that changes nothing or forgets the picture."""

    image: ImageInput
    strength: float
    mask: ImageInput | None = None
    """1 where the picture is painted anew, 0 where it is kept; None: all of it may change."""

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise SettingError(f"strength={self.strength!r} is out of range: above 0 (nothing would change). Try 0.6.")
        if self.strength == 1 and self.mask is None:
            raise SettingError(
                "strength=1 forgets the picture: choose less, such as 0.6, give a mask, or generate from the prompt alone."
            )

    def row(self) -> dict[str, Any]:
        """JSON-ready."""
        mask = {} if self.mask is None else {"mask": self.mask.digest}
        return {"image": self.image.digest, "strength": self.strength, **mask}


def last_steps(steps: Sequence[Step], strength: float) -> list[Step]:
    """The last `strength` of a plan, `int(n * strength)` of its n grid times and at least one (diffusers' rule).

    A step of several parts (Heun) is kept whole: counting goes by the parts that begin one.
    """
    first = [i for i, step in enumerate(steps) if step.phase == 0]
    return list(steps[first[len(first) - share_of(len(first), strength)] :])


def share_of(steps: int, strength: float) -> int:
    """How many of the teacher's steps an edit takes."""
    return max(1, min(int(steps * strength), steps))


def latent_mask(mask: Float[Tensor, "1 h w"], like: Float[Tensor, "c u v"]) -> Float[Tensor, "1 u v"]:
    """A mask of pixels as one of latents: the nearest pixel's, as diffusers has it."""
    return torch.nn.functional.interpolate(mask[None], size=like.shape[-2:])[0]


def blend_outside_mask(inside: Tensor, outside: Tensor, mask: Tensor) -> Tensor:
    """`mask * inside + (1 - mask) * outside`; exactly `outside` where the mask is 0. `(C, H, W)` and `(1, H, W)`."""
    return torch.where(mask == 0, outside, mask * inside + (1 - mask) * outside)
