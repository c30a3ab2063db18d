"""What a prompt alone says about the draft to come: a linear expectation of its score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from allaprima.core.errors import SettingError


def prompt_features(embed: Tensor) -> np.ndarray:
    """`(L, D)` hidden states, zero where padded -> `(D + 1,)` float64: their mean over live tokens, and how many live."""
    hidden = embed.detach().double().numpy()
    live = np.abs(hidden).sum(-1) > 0
    count = int(live.sum())
    return np.concatenate([hidden[live].mean(0) if count else np.zeros(hidden.shape[-1]), [count]])


@dataclass(frozen=True)
class Ridge:
    """`y = bias + weights . (x - mean) / scale`; features that never changed in training are ignored."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float

    @classmethod
    def fit(cls, x: np.ndarray, y: np.ndarray, strength: float) -> Ridge:
        """Least squares on standardised `x: (N, F)`, `y: (N,)` with penalty `strength * N * |weights|^2`."""
        if x.ndim != 2 or y.shape != (len(x),) or len(x) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise SettingError(f"a regression needs finite (N, F) and (N,), N >= 2: {x.shape} and {y.shape} were given.")
        mean, spread = x.mean(0), x.std(0)
        scale = np.where(spread > 1e-9, spread, np.inf)
        z = (x - mean) / scale
        gram = z.T @ z + strength * len(x) * np.eye(x.shape[1])
        # Features without spread make the matrix singular when there is no penalty: the smallest solution is meant.
        weights = np.linalg.lstsq(gram, z.T @ (y - y.mean()), rcond=None)[0]
        return cls(tuple(mean.tolist()), tuple(scale.tolist()), tuple(weights.tolist()), float(y.mean()))

    def predict(self, x: np.ndarray) -> float:
        """For one row `(F,)`: one at a time, so that an answer never depends on who shares the batch."""
        mean, scale, weights = self._arrays
        return self.bias + float(np.dot((x - mean) / scale, weights))

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.asarray(self.mean), np.asarray(self.scale), np.asarray(self.weights)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; an infinite scale (a feature without spread) is written as 0."""
        scale = [0.0 if np.isinf(s) else s for s in self.scale]
        return {"mean": list(self.mean), "scale": scale, "weights": list(self.weights), "bias": self.bias}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Ridge:
        """Inverse of `to_dict`."""
        scale = tuple(s or float("inf") for s in raw["scale"])
        return cls(tuple(raw["mean"]), scale, tuple(raw["weights"]), float(raw["bias"]))


@dataclass(frozen=True)
class PromptRouter:
    """Expected score of a draft from the prompt's hidden states alone."""

    model: Ridge

    @classmethod
    def fit(cls, embeds: Sequence[Tensor], scores: Sequence[float], strength: float = 0.1) -> PromptRouter:
        """From held-out prompts' hidden states and their drafts' scores."""
        return cls(Ridge.fit(np.stack([prompt_features(e) for e in embeds]), np.asarray(scores, np.float64), strength))

    def expect(self, embed: Tensor) -> float:
        """Return the expected score for `(L, D)` hidden states."""
        return self.model.predict(prompt_features(embed))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"model": self.model.to_dict()}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> PromptRouter:
        """Inverse of `to_dict`."""
        return cls(Ridge.from_dict(raw["model"]))
