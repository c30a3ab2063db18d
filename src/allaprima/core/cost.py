"""What a picture cost: network evaluations and seconds, by model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Cost:
    """Evaluations (a guided step is two) and seconds by model name."""

    evaluations: dict[str, float] = field(default_factory=dict[str, float])
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    def add(self, model: str, evaluations: float, seconds: float) -> None:
        """Charge a model; names without evaluations (text, decoding) are charged seconds only."""
        if evaluations:
            self.evaluations[model] = self.evaluations.get(model, 0) + evaluations
        self.seconds[model] = self.seconds.get(model, 0.0) + seconds

    def __add__(self, other: Cost) -> Cost:
        total = Cost(dict(self.evaluations), dict(self.seconds))
        for name in {**other.evaluations, **other.seconds}:
            total.add(name, other.evaluations.get(name, 0), other.seconds.get(name, 0.0))
        return total

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"evaluations": dict(self.evaluations), "seconds": dict(self.seconds)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Cost:
        """Inverse of `to_dict`."""
        return cls(dict(raw["evaluations"]), dict(raw["seconds"]))
