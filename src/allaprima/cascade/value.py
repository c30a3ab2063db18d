"""Value of compute: each action's expected gain is weighed against what it costs, at one price of compute.

`action = argmax_a gain_a(draft) - price * cost_a`, with accepting free and without gain. The gains come from a small
regression on the score, the prompt's length and what the draft looks like; the price is calibrated to the budget
(`calibration/policies.py`), so a costlier action is taken only where it buys more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from allaprima.cascade.policy import Context, Decision, DraftFirstPolicy
from allaprima.cascade.router import Ridge, prompt_features
from allaprima.core.errors import SettingError


def draft_features(score: float, embed: Tensor, image: Tensor) -> np.ndarray:
    """Return the regression's row for one draft, `(9,)` float64. `embed: (L, D)`, `image: (3, H, W)` in [0, 1].

    Score, its square, the prompt's length, edges, contrast, colour, white background, entropy, speckle.
    Image complexity is edge density (mean gradient length), the entropy of 32 grey levels and speckle (what a 3-pixel
    median-like smoothing would remove); all are computed picture by picture.
    """
    x = image.detach().double().numpy()
    grey = x.mean(0)
    dy, dx = np.diff(grey, axis=0)[:, :-1], np.diff(grey, axis=1)[:-1]
    levels = np.bincount((grey * 31.999).clip(0, 31).astype(int).ravel(), minlength=32) / grey.size
    entropy = float(-(levels[levels > 0] * np.log(levels[levels > 0])).sum())
    tall = np.pad(grey, ((1, 1), (0, 0)), mode="edge")
    smooth = (tall[:-2] + 2 * grey + tall[2:]) / 4
    return np.array(
        [
            score,
            score * score,
            prompt_features(embed)[-1],
            np.hypot(dx, dy).mean(),
            grey.std(),
            (x.max(0) - x.min(0)).mean(),
            (grey > 0.97).mean(),
            entropy,
            np.abs(grey - smooth).mean(),
        ]
    )


@dataclass(frozen=True)
class GainModel:
    """Expected gain of each action, in the units of whatever quality it was fitted to."""

    gains: dict[str, Ridge]
    """Action's name -> regression on `draft_features`."""

    @classmethod
    def fit(cls, features: np.ndarray, gains: dict[str, np.ndarray], strength: float = 0.01) -> GainModel:
        """From held-out drafts `features: (N, 9)` and what each action gained over the draft, `(N,)` by action."""
        unknown = gains.keys() - {"refine", "regenerate", "redraft"}
        if unknown or not gains:
            raise SettingError(f"actions {sorted(gains)} can't all be valued: refine, regenerate and redraft can.")
        return cls({name: Ridge.fit(features, values, strength) for name, values in sorted(gains.items())})

    def expect(self, features: np.ndarray) -> dict[str, float]:
        """Return the expected gain by action for one row."""
        return {name: model.predict(features) for name, model in self.gains.items()}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: model.to_dict() for name, model in self.gains.items()}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> GainModel:
        """Inverse of `to_dict`."""
        return cls({name: Ridge.from_dict(r) for name, r in raw.items()})


@dataclass(frozen=True)
class ValuePolicy(DraftFirstPolicy):
    """Take the action whose expected gain most exceeds `price` times its cost; accept when none does.

    A score that is no number regenerates if that can be, for nothing can be expected of it.
    """

    model: GainModel
    costs: dict[str, float]
    """Action's name -> cost of taking it, in the calibration's unit."""
    price: float
    drafts: int = 1
    """Attempts that `redraft` may use up."""
    threshold: None = None
    uses_embeddings = True

    def actions(self, strategy: Decision) -> frozenset[Decision]:
        """Return ACCEPT and the actions that have a cost."""
        return frozenset((Decision.ACCEPT, *map(Decision, self.costs)))

    def __post_init__(self) -> None:
        if self.costs.keys() != self.model.gains.keys() or min(self.costs.values()) <= 0:
            raise SettingError(
                f"costs {self.costs!r} must be positive and name the actions of the model, {sorted(self.model.gains)}."
            )

    def decide(self, scores: Sequence[float], context: Context | None = None) -> list[Decision]:
        """Needs the drafts themselves: raises `SettingError` without a context."""
        if context is None:
            raise SettingError("a value policy looks at drafts and prompts, not at scores alone: give a context.")
        rows = zip(scores, context.embeds, context.images, context.attempts, strict=True)
        return [self._one(*row) for row in rows]

    def _one(self, score: float, embed: Tensor, image: Tensor, attempt: int) -> Decision:
        possible = [a for a in self.costs if a != "redraft" or attempt < self.drafts]
        if math.isnan(score):
            return Decision.REGENERATE if "regenerate" in possible else Decision.REFINE
        expected = self.model.expect(draft_features(score, embed, image))
        net = {Decision(a): expected[a] - self.price * self.costs[a] for a in possible}
        best = max(net, key=lambda a: net[a], default=Decision.ACCEPT)
        return best if net and net[best] > 0 else Decision.ACCEPT
