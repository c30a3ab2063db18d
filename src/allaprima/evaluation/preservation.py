"""How much of a reference picture a result keeps (arXiv 2312.10835, section 4.2): cosine similarity of features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from allaprima.core.errors import SettingError
from allaprima.evaluation.metric import features_of
from allaprima.features.module import Features, describe_features


def cosine_similarity(net: Features, images: Tensor, references: Tensor | None) -> Tensor:
    """Of two batches, row by row: `(B,)` in [-1, 1], float64."""
    if references is None:
        raise SettingError("references=None: pictures to compare with are due, one a picture.")
    return F.cosine_similarity(features_of(net, images), features_of(net, references, "references"), dim=1)


class Preservation:
    """Scorer: `cos(f(result), f(reference))`; higher keeps more of the reference."""

    higher_is_better = True
    needs_prompts = False
    needs_references = True

    def __init__(self, features: Features) -> None:
        self.features, self.name = features, f"preservation ({features.name})"

    def protocol(self) -> dict[str, Any]:
        """Return the network that says how alike pictures are."""
        return {
            "formula": "cos(f(result), f(reference))",
            "paper": "arXiv 2312.10835, section 4.2 (DINOv2 there)",
            "features": describe_features(self.features),
        }

    def score(self, images: Tensor, prompts: Sequence[str], references: Tensor | None) -> Tensor:
        """`(B, 3, H, W)` in [0, 1], twice -> `(B,)`."""
        return cosine_similarity(self.features, images, references)
