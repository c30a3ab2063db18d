"""Oracles of a prompt and a picture: how well a painting fits its prompt, and how well it heeds what controls it.

The score is the base oracle's plus `weight` times an agreement in [0, 1]: the map is computed of what was painted, as it was
of the picture that controls, and both are compared. Nothing is learned, so an agreement means the same for every model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from allaprima.core.errors import SettingError
from allaprima.data.control_maps import HOLE, canny, low_resolution, smooth
from allaprima.oracles.oracle import Oracle


def _edges(image: Tensor, control: Tensor) -> float:
    """F1 score of edges, a pixel's distance being none: each edge looks for one of the other's in its 3x3 neighbourhood."""
    mine, theirs = canny(image)[:1], (control[:1] > 0.5).float()
    near = [F.max_pool2d(x, 3, stride=1, padding=1) for x in (mine, theirs)]
    hits, total = float((mine * near[1]).sum() + (theirs * near[0]).sum()), float(mine.sum() + theirs.sum())
    return hits / total if total else 1.0


def _colours(image: Tensor, control: Tensor) -> float:
    return 1 - float((smooth(image) - control).abs().mean())


def _low_resolution(image: Tensor, control: Tensor) -> float:
    return 1 - float((low_resolution(image) - control).abs().mean())


def _outside(image: Tensor, control: Tensor) -> float:
    """Of what isn't missing."""
    kept = 1 - control[3:]
    wrong = ((image - control[:3]).abs() * kept).sum() / (3 * kept.sum()).clamp(min=1)
    return 1 - float(wrong)


AGREEMENTS: Mapping[str, Callable[[Tensor, Tensor], float]] = {
    "canny": _edges, "colours": _colours, "low-resolution": _low_resolution, HOLE: _outside,
}  # fmt: skip
"""`(painted (3, H, W), control (C, H, W)) -> [0, 1]` by map."""


class ConditionalOracle:
    """A base oracle that also looks at the maps; behind the oracle protocol.

    `maps`: what the control pictures are, one a net. Raises `SettingError` for one that can't be computed of a painting.
    """

    def __init__(self, base: Oracle, maps: Sequence[str], weight: float) -> None:
        odd = next((m for m in maps if m not in AGREEMENTS), None)
        if odd is not None:
            raise SettingError(
                f"map={odd!r} is not computed of a painting, {', '.join(AGREEMENTS)} are: leave the condition's weight out."
            )
        if not 0 < weight <= 100:
            raise SettingError(f"the condition's weight {weight!r} is out of range: above 0, at most 100.")
        self.base, self.maps, self.weight = base, tuple(maps), weight
        self.name = f"{base.name} and {', '.join(maps)}"
        self.fingerprint = f"{base.fingerprint}+{weight:g}*{'+'.join(maps)}"
        self.cost = base.cost

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the base oracle's: for pictures that nothing controls."""
        return self.base.score(images, prompts)

    def score_given(self, images: Tensor, prompts: Sequence[str], controls: Sequence[Tensor]) -> Tensor:
        """`images: (B, 3, H, W)`, `controls: (B, C, H, W)` one a net -> `(B,)`; the mean of the nets' agreements counts."""
        found = torch.tensor([
            sum(AGREEMENTS[m](image, given[i]) for m, given in zip(self.maps, controls, strict=True)) / len(self.maps)
            for i, image in enumerate(images)
        ])  # fmt: skip
        return self.base.score(images, prompts) + self.weight * found
