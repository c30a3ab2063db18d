"""What an oracle is: a reference-free scorer of a picture for its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Oracle(Protocol):
    """Higher is better. Scores of one picture don't depend on the others of its batch."""

    name: str
    fingerprint: str
    """Hash of weights and settings: a calibration belongs to it."""

    @property
    def cost(self) -> float:
        """Share of one guided teacher step; nan where nothing says it."""
        ...

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """`images: (B, 3, H, W)` in [0, 1] with their prompts -> `(B,)`."""
        ...
