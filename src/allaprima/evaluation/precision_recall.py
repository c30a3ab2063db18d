"""Precision and recall by nearest neighbours (arXiv 1904.06991), with density and coverage (arXiv 2002.09797).

A set's manifold is the union of balls around its samples, each reaching its k-th nearest neighbour in the set.
Precision: share of painted pictures inside the real manifold. Recall: share of real ones inside the painted manifold.
Density: real balls that hold a painted picture, over k, on average. Coverage: share of real balls holding any.
Balls are closed (a distance equal to the radius is inside).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from allaprima.core.errors import SettingError
from allaprima.evaluation.feature_store import FeatureStore
from allaprima.evaluation.metric import MetricResult, common
from allaprima.features.module import Features, describe_features

ROWS = 1024
"""Rows of a distance matrix that are in memory at once."""


def precision_recall(painted: Tensor, real: Tensor, k: int = 3) -> dict[str, float]:
    """Of features `(N, D)` and `(M, D)`, N, M > k: `precision`, `recall`, `density`, `coverage`."""
    if painted.ndim != 2 or real.ndim != 2 or painted.shape[1] != real.shape[1]:
        raise SettingError(f"features of shapes {tuple(painted.shape)}, {tuple(real.shape)}: (N, D) and (M, D) are due.")
    if k < 1 or min(len(painted), len(real)) < k + 1:
        raise SettingError(
            f"k={k} with {len(painted)} painted and {len(real)} real pictures: k >= 1 and at least k + 1 of each are due."
        )
    # One origin for both sets: distances stay, and so do more of their digits.
    origin = real.double().mean(0)
    painted, real = painted.double() - origin, real.double() - origin
    r_real, r_painted = _radii(real, k), _radii(painted, k)
    balls: list[Tensor] = []
    recalled = torch.zeros(len(real), dtype=torch.bool)
    covered = torch.zeros(len(real), dtype=torch.bool)
    for rows, radii in zip(painted.split(ROWS), r_painted.split(ROWS), strict=True):
        d = _squared_distances(rows, real)
        inside = d <= r_real
        balls.append(inside.sum(1))
        covered |= inside.any(0)
        recalled |= (d <= radii[:, None]).any(0)
    held = torch.cat(balls).double()
    return {
        "precision": float((held > 0).double().mean()),
        "recall": float(recalled.double().mean()),
        "density": float(held.mean()) / k,
        "coverage": float(covered.double().mean()),
    }


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """`(N, M)`; by a matrix product, with what is below its rounding error taken as 0: equal pictures are at distance 0."""
    norms = a.square().sum(1)[:, None] + b.square().sum(1)
    d = norms - 2 * a @ b.T
    return torch.where(d > 1e-13 * norms, d, 0)


def _radii(x: Tensor, k: int) -> Tensor:
    """Squared distance to the k-th nearest other sample, widened by rounding error so that ties are inside."""
    parts: list[Tensor] = []
    for i, rows in enumerate(x.split(ROWS)):
        d = _squared_distances(rows, x)
        j = torch.arange(len(rows))
        d[j, j + i * ROWS] = torch.inf
        parts.append(d.kthvalue(k, dim=1).values)
    return torch.cat(parts) * (1 + 1e-9)


class PrecisionRecall:
    """Set metric; the value is precision, all four are in `more`."""

    name = "precision"
    higher_is_better = True

    def __init__(self, features: Features, reference: Tensor | None = None, k: int = 3) -> None:
        if k < 1:
            raise SettingError(f"k={k}: 1 or more is due.")
        self.features, self.k = features, k
        self._bank = FeatureStore("precision and recall", features, reference)

    def protocol(self) -> dict[str, Any]:
        """Comparable for one k, one network and one number of pictures."""
        pictures, references = self._bank.counts
        return {
            **common(self, "set"),
            "formula": "share of painted pictures inside a real picture's ball to its k-th neighbour; recall the reverse",
            "paper": "arXiv 1904.06991 (precision, recall), arXiv 2002.09797 (density, coverage; here closed balls)",
            "features": describe_features(self.features),
            "k": self.k,
            "pictures": pictures,
            "references": references,
        }

    def update(self, images: Tensor, prompts: Sequence[str] = (), references: Tensor | None = None) -> None:
        """Painted pictures; `references`, if given, join the reference set (as many as there are)."""
        self._bank.add(images, references)

    def compute(self) -> MetricResult:
        """Precision, with recall, density and coverage."""
        found = precision_recall(*self._bank.both(self.k + 1), self.k)
        return MetricResult(self.name, found["precision"], self.protocol(), found)
