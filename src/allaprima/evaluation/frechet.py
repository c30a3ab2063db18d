"""Frechet distance between two sets of features (arXiv 1706.08500, equation 6).

`|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`. The last trace is the nuclear norm of `A B^T`, with A, B the centred
features over `sqrt(n - 1)`: no matrix square root is taken, so few samples in many dimensions are no trouble for the
arithmetic. They are for the estimate: it is biased upwards with few samples, so compare only distances made with the
same numbers of pictures, the same feature network and the same reference.

Streaming keeps the mean and a triangular factor of the scatter (updated by QR, never squared), at most 2D rows of D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from allaprima.core.errors import SettingError
from allaprima.evaluation.metric import MetricResult, check_count, common, features_of
from allaprima.features.module import Features, describe_features


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Distance of features `a: (N, D)` and `b: (M, D)`, N, M >= 2. Raises `SettingError` for other shapes."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise SettingError(
            f"features of shapes {tuple(a.shape)} and {tuple(b.shape)}: (N, D) and (M, D) with N, M >= 2 are due."
        )
    return frechet_of_moments(moments_of(a), moments_of(b))


@dataclass(frozen=True)
class Moments:
    """Mean `(D,)` and a factor `(R, D)`, R <= D, of the covariance `factor^T factor` over `count` samples; float64."""

    count: int
    mean: Tensor
    factor: Tensor

    @property
    def covariance(self) -> Tensor:
        """`(D, D)`, the unbiased estimate."""
        return self.factor.T @ self.factor

    @classmethod
    def from_covariance(cls, count: int, mean: Tensor, covariance: Tensor) -> Moments:
        """From published statistics: mean `(D,)`, covariance `(D, D)` (eigenvalues below rounding error are taken as 0)."""
        if covariance.shape != (len(mean), len(mean)):
            raise SettingError(f"covariance of shape {tuple(covariance.shape)} for {len(mean)} means: (D, D) is due.")
        values, vectors = torch.linalg.eigh(covariance.double())
        least = float(values[-1]) * len(mean) * torch.finfo(torch.float64).eps
        if float(values[0]) < -1e3 * abs(least):
            raise SettingError(f"covariance has the eigenvalue {float(values[0]):g}: a covariance has none below 0.")
        keep = values > least
        return cls(count, mean.double(), values[keep].sqrt()[:, None] * vectors[:, keep].T)


class MomentSums:
    """Streaming moments; how the samples are split into batches changes nothing but the last digits."""

    def __init__(self) -> None:
        self._folded = 0
        self._mean, self._factor = torch.zeros(0), torch.zeros(0)
        self._waiting: list[Tensor] = []

    @property
    def count(self) -> int:
        """How many samples were added."""
        return self._folded + sum(map(len, self._waiting))

    def add(self, features: Tensor) -> None:
        """`(B, D)`."""
        if not self.count:
            self._mean = torch.zeros(features.shape[1], dtype=torch.float64)
            self._factor = torch.zeros(0, features.shape[1], dtype=torch.float64)
        if features.shape[1] != len(self._mean):
            raise SettingError(f"features of {features.shape[1]} dimensions after {len(self._mean)}: one network is due.")
        if not len(features):
            return
        self._waiting.append(features.double())
        # One QR for at least D samples: its cost a sample doesn't depend on the batch.
        if self.count - self._folded >= len(self._mean):
            self._fold()

    def _fold(self) -> None:
        new = torch.cat(self._waiting)
        self._waiting = []
        mean = new.mean(0)
        n = self._folded + len(new)
        # Chan, Golub and LeVeque (1979): two scatters and the step between their means make the joint scatter.
        step = (mean - self._mean) * (self._folded * len(new) / n) ** 0.5
        self._factor = _triangle(torch.cat([self._factor, new - mean, step[None]]))
        self._mean = self._mean + (mean - self._mean) * (len(new) / n)
        self._folded = n

    def moments(self) -> Moments:
        """Of everything added. Raises `SettingError` for fewer than 2 samples."""
        check_count(self.count, 2, "a covariance", "samples")
        if self._waiting:
            self._fold()
        return Moments(self.count, self._mean, self._factor / (self.count - 1) ** 0.5)


def moments_of(features: Tensor) -> Moments:
    """Moments of `(N, D)` at once."""
    sums = MomentSums()
    sums.add(features)
    return sums.moments()


def frechet_of_moments(a: Moments, b: Moments) -> float:
    """Distance of two sets by their moments."""
    if a.mean.shape != b.mean.shape:
        raise SettingError(f"moments of {len(a.mean)} and {len(b.mean)} dimensions: one feature network is due.")
    # tr((S_a S_b)^1/2) = sum of the singular values of A B^T, since S_a = A^T A and S_b = B^T B.
    cross = float(torch.linalg.svdvals(a.factor @ b.factor.T).sum())
    return float((a.mean - b.mean).square().sum() + a.factor.square().sum() + b.factor.square().sum()) - 2 * cross


def _triangle(x: Tensor) -> Tensor:
    """At most D rows with the same `x^T x`: many samples must not cost a matrix of samples by samples."""
    return torch.linalg.qr(x, mode="r").R.contiguous() if len(x) > x.shape[1] else x


class FrechetDistance:
    """Set metric: painted pictures against a reference, by moments (cached: `cache.FeatureCache`) or pictures."""

    higher_is_better = False

    def __init__(self, features: Features, reference: Moments | None = None) -> None:
        self.features, self.reference = features, reference
        self.name = "fid" if features.name.startswith("inception") else f"frechet ({features.name})"
        self._painted, self._real = MomentSums(), MomentSums()

    def protocol(self) -> dict[str, Any]:
        """A value is called FID only if the network is Inception."""
        return {
            **common(self, "set"),
            "formula": "|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), unbiased covariances",
            "paper": "arXiv 1706.08500, equation 6",
            "features": describe_features(self.features),
            "pictures": self._painted.count,
            "references": self.reference.count if self.reference else self._real.count,
            "note": "biased upwards with few pictures: compare equal numbers only",
        }

    def update(self, images: Tensor, prompts: Sequence[str] = (), references: Tensor | None = None) -> None:
        """Painted pictures; `references`, if given, join the reference set (as many as there are)."""
        if references is not None and self.reference is not None:
            raise SettingError(f"{self.name} has its reference already: give moments or pictures, not both.")
        painted = features_of(self.features, images)
        real = None if references is None else features_of(self.features, references, "references")
        self._painted.add(painted)
        if real is not None:
            self._real.add(real)

    def compute(self) -> MetricResult:
        """The distance."""
        check_count(self._painted.count, 2, self.name)
        if self.reference is None:
            check_count(self._real.count, 2, self.name, "reference pictures")
        value = frechet_of_moments(self._painted.moments(), self.reference or self._real.moments())
        return MetricResult(self.name, value, self.protocol())
