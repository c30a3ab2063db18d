"""The head of ImageReward and of LAION's aesthetic predictor: five linear layers, nothing but dropout between them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

WIDTHS = (1024, 128, 64, 16)
"""Published hidden sizes."""


class RewardHead(nn.Module):
    """`(B, dim) -> (B,)`. Attribute names and places are those of the published weights, dropouts counted.

    Without activations between them the five layers are one linear map: that is how both were published.
    """

    def __init__(self, dim: int = 768, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        a, b, c, d = widths
        self.layers = nn.Sequential(
            nn.Linear(dim, a), nn.Dropout(0.2), nn.Linear(a, b), nn.Dropout(0.2), nn.Linear(b, c), nn.Dropout(0.1),
            nn.Linear(c, d), nn.Linear(d, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """One number a row."""
        return self.layers(x)[:, 0]

    @classmethod
    def for_weights(cls, weights: Mapping[str, Tensor]) -> RewardHead:
        """Return a head of the sizes that `layers.N.weight` have."""
        found = sorted((int(m[1]), k) for k in weights if (m := re.fullmatch(r"layers\.(\d+)\.weight", k)))
        sizes = [tuple(weights[k].shape) for _, k in found]
        if [n for n, _ in found] != [0, 2, 4, 6, 7] or any(len(s) != 2 for s in sizes):
            raise KeyError(f"layers 0, 2, 4, 6 and 7 are due, there are {[n for n, _ in found]}")
        return cls(sizes[0][1], tuple(s[0] for s in sizes[:4]))
