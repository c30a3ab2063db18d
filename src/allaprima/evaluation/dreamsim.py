"""Distance of the DreamSim kind (arXiv 2306.09344): cosine distance of features at 224 px, pictures in [0, 1].

It is DreamSim itself only with DreamSim's weights; with any other network it is named `dreamsim-type`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from allaprima.core.errors import SettingError
from allaprima.evaluation.preservation import cosine_similarity
from allaprima.features.module import Features, describe_features
from allaprima.features.preprocess import Preprocess

SIDE = 224
"""Pixels."""


class DreamSimType:
    """Scorer: `1 - cos(f(a), f(b))` in [0, 2]; lower is nearer. What it is of, student and teacher say, is the caller's."""

    higher_is_better = False
    needs_prompts = False
    needs_references = True

    def __init__(self, features: Features) -> None:
        self.features, self.resize = features, Preprocess(size=(SIDE, SIDE))
        self.name = "dreamsim" if features.name == "dreamsim" else f"dreamsim-type ({features.name})"

    def protocol(self) -> dict[str, Any]:
        """Says plainly whose weights they are."""
        return {
            "formula": "1 - cos(f(a), f(b))",
            "paper": "arXiv 2306.09344" + ("" if self.name == "dreamsim" else " (the kind of distance; not its weights)"),
            "resize": self.resize.describe()["resize"],
            "features": describe_features(self.features),
        }

    def score(self, images: Tensor, prompts: Sequence[str], references: Tensor | None) -> Tensor:
        """`(B, 3, H, W)` in [0, 1], twice -> `(B,)`."""
        if references is None:
            raise SettingError("references=None: pictures to compare with are due, one a picture.")
        return 1 - cosine_similarity(self.features, self.resize(images), self.resize(references))
