"""What a metric is: fed batch by batch, it ends in a value with the protocol that made it.

Two kinds share the one interface `Metric`. A *scorer* gives every picture a number of its own; `PerPicture` collects
them, so that paired intervals over prompts can be had (`intervals.mean_interval`). A *set* metric accumulates what the
whole set needs and has no per-picture values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from allaprima.core.errors import SettingError
from allaprima.features.module import Features


@dataclass(frozen=True)
class MetricResult:
    """A metric's answer. `per_picture: (N,)` in the order of feeding, if pictures have values of their own."""

    name: str
    value: float
    protocol: Mapping[str, Any]
    more: Mapping[str, float] = field(default_factory=dict[str, float])
    """Further values, for example a standard deviation over subsets."""
    per_picture: np.ndarray | None = None
    per_prompt: Mapping[str, float] | None = None
    kinds: Sequence[str] | None = None
    """Of each picture, where the metric is reported by kind too."""


class Metric(Protocol):
    """Fed by `update`, asked by `compute`, which may be called at any time and changes nothing."""

    name: str
    higher_is_better: bool

    def protocol(self) -> dict[str, Any]:
        """JSON-ready: formula, paper, network with fingerprint, resizing, numbers of pictures so far."""
        ...

    def update(self, images: Tensor, prompts: Sequence[str] = (), references: Tensor | None = None) -> None:
        """Add `images: (B, 3, H, W)` in [0, 1], with their prompts and reference pictures where the metric needs them.

        Raises `SettingError` for other shapes, types or ranges, and then adds nothing.
        """
        ...

    def compute(self) -> MetricResult:
        """Return the value over everything fed; raises `SettingError` if that is too little."""
        ...


@runtime_checkable
class PerImageScorer(Protocol):
    """A number for every picture, on its own."""

    name: str
    higher_is_better: bool
    needs_prompts: bool
    needs_references: bool

    def protocol(self) -> dict[str, Any]:
        """JSON-ready: what makes its numbers comparable."""
        ...

    def score(self, images: Tensor, prompts: Sequence[str], references: Tensor | None) -> Tensor:
        """`(B, 3, H, W)` in [0, 1] -> `(B,)`."""
        ...


class PerPicture:
    """A scorer as a metric: the mean of its scores, every score kept."""

    def __init__(self, scorer: PerImageScorer) -> None:
        self.scorer, self.name, self.higher_is_better = scorer, scorer.name, scorer.higher_is_better
        self._scores: list[np.ndarray] = []

    @property
    def pictures(self) -> int:
        """How many were fed."""
        return sum(map(len, self._scores))

    def protocol(self) -> dict[str, Any]:
        """Return the scorer's, with the number of pictures."""
        return {**self.scorer.protocol(), **common(self, "picture"), "pictures": self.pictures}

    def update(self, images: Tensor, prompts: Sequence[str] = (), references: Tensor | None = None) -> None:
        """Score a batch; a score that is not finite raises `SettingError` with the picture's number."""
        if not len(check_images(images)):
            return
        if self.scorer.needs_prompts:
            check_prompts(prompts, len(images), self.name)
        if self.scorer.needs_references:
            check_references(references, len(images), self.name)
        scores = self.scorer.score(images, prompts, references).detach().double().cpu().numpy()
        if scores.shape != (len(images),):
            raise SettingError(f"{self.name} gave scores of shape {scores.shape} for {len(images)} pictures: (B,) is due.")
        bad = np.flatnonzero(~np.isfinite(scores))
        if len(bad):
            n = self.pictures + int(bad[0])
            raise SettingError(
                f"{self.name} gave picture {n} the score {scores[bad[0]]}: finite numbers are due. Look at that picture,"
                " or leave it out of every row that is compared."
            )
        self._scores.append(scores)

    def compute(self) -> MetricResult:
        """Return the mean, with the scores."""
        check_count(self.pictures, 1, self.name)
        scores = np.concatenate(self._scores)
        return MetricResult(self.name, float(scores.mean()), self.protocol(), per_picture=scores)


def common(metric: Any, per: str) -> dict[str, Any]:
    """Return what every protocol records."""
    return {"metric": metric.name, "higher_is_better": metric.higher_is_better, "per": per}


def check_images(images: Tensor, what: str = "images") -> Tensor:
    """`(B, 3, H, W)` floats in [0, 1], else `SettingError`."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise SettingError(f"{what} of shape {tuple(images.shape)}: (B, 3, H, W) is due.")
    if not images.is_floating_point():
        raise SettingError(f"{what} of type {images.dtype}: floats in [0, 1] are due. Divide 8-bit pictures by 255.")
    if images.numel():
        low, high = (float(v) for v in images.aminmax())
        # Not a chain of `<`: NaN must fail it too.
        if not (low >= 0 and high <= 1):
            raise SettingError(f"{what} from {low:g} to {high:g}: [0, 1] is due. Map [-1, 1] by (x + 1) / 2, or clamp.")
    return images


def check_prompts(prompts: Sequence[str], count: int, who: str) -> None:
    """One prompt a picture."""
    if len(prompts) != count:
        raise SettingError(f"{who}: {len(prompts)} prompts for {count} pictures: one a picture is due.")


def check_references(references: Tensor | None, count: int, who: str) -> Tensor:
    """One reference picture a picture; sizes in pixels may differ."""
    if references is None:
        raise SettingError(f"{who} compares with reference pictures: give `references`, one a picture.")
    if len(check_images(references, "references")) != count:
        raise SettingError(f"{who}: {len(references)} references for {count} pictures: one a picture is due.")
    return references


def check_count(count: int, least: int, who: str, what: str = "pictures") -> None:
    """Enough was fed."""
    if count < least:
        raise SettingError(f"{who} has {count} {what}: at least {least} are due. Feed more before asking for the value.")


def features_of(net: Features, images: Tensor, what: str = "images") -> Tensor:
    """Return features `(B, dim)` of checked pictures, finite, on the CPU in double precision, else `SettingError`."""
    if not len(check_images(images, what)):
        return torch.zeros(0, net.dim, dtype=torch.float64)
    x = net.features(images).detach().cpu().double()
    if x.shape != (len(images), net.dim):
        raise SettingError(f"{net.name} gave features of shape {tuple(x.shape)}: {(len(images), net.dim)} is due.")
    bad = (~torch.isfinite(x).all(1)).nonzero()
    if len(bad):
        raise SettingError(f"{net.name} gave features that are not finite for picture {int(bad[0])} of its batch.")
    return x
