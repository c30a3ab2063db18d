"""Kernel distance (KID, arXiv 1801.01401): unbiased squared maximum mean discrepancy with a cubic polynomial kernel.

`k(x, y) = (x.y / D + 1)^3`; `MMD^2 = sum_{i != j} k(a_i, a_j) / n(n-1) + sum_{i != j} k(b_i, b_j) / m(m-1)
- 2 sum_{ij} k(a_i, b_j) / nm`. Unbiased, unlike the Frechet distance: near 0 it may be negative, and it may be compared
between different numbers of pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from allaprima.core.errors import SettingError
from allaprima.evaluation.feature_store import FeatureStore
from allaprima.evaluation.metric import MetricResult, common
from allaprima.features.module import Features, describe_features

ROWS = 1024
"""Rows of a kernel matrix that are in memory at once."""


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased MMD^2 of features `a: (N, D)`, `b: (M, D)`, N, M >= 2. Raises `SettingError` for other shapes."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise SettingError(
            f"features of shapes {tuple(a.shape)} and {tuple(b.shape)}: (N, D) and (M, D) with N, M >= 2 are due."
        )
    a, b = a.double(), b.double()
    n, m = len(a), len(b)
    within_a = (_sum(a, a) - _own(a)) / (n * (n - 1))
    within_b = (_sum(b, b) - _own(b)) / (m * (m - 1))
    return within_a + within_b - 2 * _sum(a, b) / (n * m)


def _sum(a: Tensor, b: Tensor) -> float:
    return sum(float(((x @ b.T) / a.shape[1] + 1).pow(3).sum()) for x in a.split(ROWS))


def _own(a: Tensor) -> float:
    return float((a.square().sum(1) / a.shape[1] + 1).pow(3).sum())


class KernelDistance:
    """Set metric. The value is the mean over random subsets, as published; `more` has their std and the MMD^2 of all."""

    higher_is_better = False

    def __init__(
        self, features: Features, reference: Tensor | None = None, subsets: int = 100, subset_size: int = 1000, seed: int = 0
    ) -> None:
        if subsets < 1 or subset_size < 2:
            raise SettingError(f"subsets={subsets}, subset_size={subset_size}: at least 1 and 2 are due.")
        self.name = "kid" if features.name.startswith("inception") else f"kernel ({features.name})"
        self.features, self.subsets, self.subset_size, self.seed = features, subsets, subset_size, seed
        self._bank = FeatureStore(self.name, features, reference)

    def protocol(self) -> dict[str, Any]:
        """A value is called KID only if the network is Inception."""
        pictures, references = self._bank.counts
        return {
            **common(self, "set"),
            "formula": "unbiased MMD^2, kernel (x.y / D + 1)^3; mean over subsets drawn without replacement",
            "paper": "arXiv 1801.01401, section 4",
            "features": describe_features(self.features),
            "subsets": self.subsets,
            "subset_size": self.subset_size,
            "seed": self.seed,
            "pictures": pictures,
            "references": references,
        }

    def update(self, images: Tensor, prompts: Sequence[str] = (), references: Tensor | None = None) -> None:
        """Painted pictures; `references`, if given, join the reference set (as many as there are)."""
        self._bank.add(images, references)

    def compute(self) -> MetricResult:
        """`value`: mean over subsets; `more`: `std` over subsets, `all` pictures at once (whatever their order)."""
        a, b = self._bank.both(2)
        size = self.subset_size
        if min(len(a), len(b)) < size:
            raise SettingError(
                f"{self.name}: subset_size={size} with {len(a)} pictures and {len(b)} references: at most"
                f" {min(len(a), len(b))} can be drawn. Give a smaller subset_size, the same for every row compared."
            )
        rng = np.random.default_rng(self.seed)
        drawn = [
            kernel_distance(*(x[torch.from_numpy(rng.choice(len(x), size, replace=False))] for x in (a, b)))
            for _ in range(self.subsets)
        ]
        more = {"std": float(np.std(drawn)), "all": kernel_distance(a, b)}
        return MetricResult(self.name, float(np.mean(drawn)), self.protocol(), more)
