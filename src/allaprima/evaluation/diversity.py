"""Diversity over seeds (arXiv 2312.10835, appendix D): mean distance between pictures of one prompt, over prompts.

With unit features `u_i` of a prompt's n pictures the mean cosine distance of its pairs is
`(n sum |u|^2 - |sum u|^2) / n(n-1)`: sums are enough, no pair is formed. Squared Euclidean distance:
twice that, of features as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from allaprima.core.errors import SettingError
from allaprima.evaluation.metric import MetricResult, check_count, check_prompts, common, features_of
from allaprima.features.module import Features, describe_features

Distance = Literal["cosine", "squared_euclidean"]


class _Sums:
    """Of one prompt: pictures, sum of features, sum of squared lengths."""

    def __init__(self, dim: int) -> None:
        self.count, self.total, self.squares = 0, torch.zeros(dim, dtype=torch.float64), 0.0


class Diversity:
    """Metric with a value for each prompt; a prompt's pictures may come in any batches."""

    higher_is_better = True

    def __init__(self, features: Features, distance: Distance = "cosine") -> None:
        if distance not in ("cosine", "squared_euclidean"):
            raise SettingError(f"distance={distance!r}: 'cosine' or 'squared_euclidean' is due.")
        self.features, self.distance = features, distance
        self.name = f"diversity ({features.name}, {distance})"
        self._prompts: dict[str, _Sums] = {}

    def protocol(self) -> dict[str, Any]:
        """The distance and how many pictures and prompts it was taken over."""
        return {
            **common(self, "prompt"),
            "formula": "mean over prompts of the mean distance over pairs of a prompt's pictures",
            "paper": "arXiv 2312.10835, appendix D (people's votes there)",
            "distance": self.distance,
            "features": describe_features(self.features),
            "pictures": sum(s.count for s in self._prompts.values()),
            "prompts": len(self._prompts),
        }

    def update(self, images: Tensor, prompts: Sequence[str] = (), references: Tensor | None = None) -> None:
        """Pictures with their prompts."""
        check_prompts(prompts, len(images), self.name)
        x = features_of(self.features, images)
        if self.distance == "cosine":
            x = F.normalize(x, dim=1)
        for row, prompt in zip(x, prompts, strict=True):
            sums = self._prompts.setdefault(prompt, _Sums(x.shape[1]))
            sums.count += 1
            sums.total += row
            sums.squares += float(row.square().sum())

    def compute(self) -> MetricResult:
        """Mean over prompts; raises `SettingError` naming a prompt with one picture."""
        check_count(len(self._prompts), 1, self.name, "prompts")
        values: dict[str, float] = {}
        for prompt, s in self._prompts.items():
            check_count(s.count, 2, self.name, f"pictures of prompt {prompt!r}")
            pairs = (s.count * s.squares - float(s.total.square().sum())) / (s.count * (s.count - 1))
            values[prompt] = max(pairs, 0.0) * (1 if self.distance == "cosine" else 2)
        return MetricResult(self.name, sum(values.values()) / len(values), self.protocol(), per_prompt=values)
