"""What is asked of a painter that paints whole pictures, and what it gives back: a pipeline that is called, a server that is
asked, models taken step by step elsewhere. The cascade of such painters is `cascade.pixel_cascade`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from allaprima.core.constants import NATIVE_SOLVER


@dataclass(frozen=True)
class GeneratorRequest:
    """One picture, from its prompt, or from a picture that is painted over."""

    prompt: str
    seed: int
    """Of a generator of this picture's own; below 2^31, which every server takes."""
    steps: int
    """Network steps: N means N, whatever the strength."""
    guidance: float
    height: int
    width: int
    negative_prompt: str = ""
    solver: str = NATIVE_SOLVER
    image: Tensor | None = None
    """`(3, H, W)` in [0, 1], painted over; None: from the prompt alone."""
    strength: float = 1.0
    """In (0, 1): the share of the schedule that `image` is noised up to."""
    prompt_2: str = ""
    """For the second text encoder (`conditioning.prompt_inputs`); empty: the prompt. Likewise the others."""
    negative_prompt_2: str = ""
    prompt_3: str = ""
    negative_prompt_3: str = ""
    clip_skip: int = 0
    guidance_rescale: float = 0.0
    """Both as in `cascade.settings`."""


@dataclass(frozen=True)
class GeneratedImage:
    """A picture and what it took."""

    image: Tensor
    """`(3, H, W)` in [0, 1]."""
    steps: int
    """As the painter counted them, else as asked."""
    evaluations: float
    """Network evaluations: a guided step is two where the painter tells that it is guided."""


@runtime_checkable
class ImageGenerator(Protocol):
    """Paints whole pictures, or paints over them."""

    @property
    def fingerprint(self) -> str:
        """What a calibration is tied to."""
        ...

    @property
    def paints_over(self) -> bool:
        """Whether it can be given a picture (image to image)."""
        ...

    def check(self, request: GeneratorRequest) -> None:
        """Raise `PromptError` or `SettingError` for what can't be painted, before anything is."""
        ...

    def paint(self, requests: Sequence[GeneratorRequest], batch: int) -> list[GeneratedImage | Exception]:
        """One answer an ask, in order; an exception where that picture failed. `batch`: the run's batch size."""
        ...

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """`(B, L, D)` hidden states of prompts, for oracles that read them. Raises `ModelError` if it has none."""
        ...


def steps_for_strength(steps: int, strength: float) -> int:
    """Steps of a whole schedule whose last `strength` are `steps` of them, by diffusers' rule `int(n * strength)`."""
    n = max(1, int(steps / strength))
    while int(n * strength) < steps:
        n += 1
    return n
