"""An oracle made of several: the weighted mean of its members' scores, each brought to a common scale first.

Scores of different oracles have different units (a logit, a reward, a cosine), so a scale belongs to each member:
`Raw` leaves the score as it is, `Standard` takes a stored mean and standard deviation, `Rank` the place among stored
reference scores, in [0, 1]. Mean, deviation and references come from held-out drafts once, never from the batch at hand:
a picture's score does not change with its batch mates.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from allaprima.core.errors import CalibrationError, SettingError
from allaprima.oracles.oracle import Oracle


@dataclass(frozen=True)
class Raw:
    """The score itself."""

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """`(B,) -> (B,)`."""
        return scores


@dataclass(frozen=True)
class Standard:
    """`(score - mean) / deviation` of held-out scores."""

    mean: float
    deviation: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean) or not 0 < self.deviation < math.inf:
            raise SettingError(
                f"mean={self.mean!r}, deviation={self.deviation!r}: a finite mean and a deviation above 0 are due."
                " Scores that are all the same tell nothing: leave this member out."
            )

    @classmethod
    def of(cls, scores: Sequence[float]) -> Standard:
        """From held-out scores (two or more); the deviation is the population's."""
        values = _reference(scores)
        return cls(float(values.mean()), float(values.std()))

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """`(B,) -> (B,)`, unbounded."""
        return (scores - self.mean) / self.deviation


@dataclass(frozen=True)
class Rank:
    """Place among held-out scores: the share of them below, half of the equal ones added.

    Linear between neighbours, so that two scores between the same references still differ; 0 below all of them and 1
    above: there the order is lost, and the references should be many.
    """

    references: tuple[float, ...]

    def __post_init__(self) -> None:
        _reference(self.references)

    @classmethod
    def of(cls, scores: Sequence[float]) -> Rank:
        """From held-out scores (two or more)."""
        return cls(tuple(np.sort(_reference(scores)).tolist()))

    @cached_property
    def _knots(self) -> tuple[np.ndarray, np.ndarray]:
        values, counts = np.unique(np.asarray(self.references), return_counts=True)
        return values, (np.cumsum(counts) - counts / 2) / counts.sum()

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """`(B,) -> (B,)` in [0, 1]."""
        values, places = self._knots
        return np.interp(scores, values, places, left=0.0, right=1.0)


Scale = Raw | Standard | Rank
_SCALES: dict[str, type[Raw] | type[Standard] | type[Rank]] = {"raw": Raw, "standard": Standard, "rank": Rank}


@dataclass(frozen=True)
class Member:
    """An oracle of an ensemble, its weight (above 0) and its scale."""

    oracle: Oracle
    weight: float = 1.0
    scale: Scale = Raw()


class EnsembleOracle:
    """Weighted mean of members' scaled scores; behind the oracle protocol.

    Weights are divided by their sum. The cost is the members' sum; the fingerprint hashes their fingerprints, weights and
    scales in order. A member's NaN makes the mean NaN, which a policy treats as falling short.
    Raises `SettingError` for no members or a weight that is not above 0.
    """

    def __init__(self, members: Sequence[Member], name: str = "ensemble") -> None:
        weights = [m.weight for m in members]
        if not members or not all(0 < w < math.inf for w in weights):
            raise SettingError(f"weights={weights!r}: at least one member, each with a finite weight above 0, is due.")
        self.members = tuple(members)
        self.weights = tuple(w / math.fsum(weights) for w in weights)
        self.name = name
        self.cost = math.fsum(m.oracle.cost for m in members)
        self.fingerprint = hashlib.sha256(json.dumps(self._settings()).encode()).hexdigest()[:16]

    def _settings(self) -> list[dict[str, Any]]:
        kinds = {v: k for k, v in _SCALES.items()}
        return [
            {"fingerprint": m.oracle.fingerprint, "weight": w, "scale": kinds[type(m.scale)], **asdict(m.scale)}
            for m, w in zip(self.members, self.weights, strict=True)
        ]

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """`images: (B, 3, H, W)` in [0, 1] with their prompts -> `(B,)` float64."""
        total = np.zeros(len(images))
        for member, weight in zip(self.members, self.weights, strict=True):
            raw = member.oracle.score(images, prompts).double().cpu().numpy()
            total = total + weight * member.scale(raw)
        return torch.from_numpy(total).to(images.device)

    def save(self, path: Path) -> None:
        """Weights, scales and the members' fingerprints as JSON; the members' own weights stay where they are."""
        path.write_text(json.dumps({"name": self.name, "members": self._settings()}, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path, oracles: Sequence[Oracle]) -> EnsembleOracle:
        """Inverse of `save`, with the members found among `oracles` by fingerprint.

        Raises `CalibrationError` for an unreadable file or a member that is not there.
        """
        found = {o.fingerprint: o for o in oracles}
        try:
            raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            rows = [dict(m) for m in raw["members"]]
            scales = [_scale(m) for m in rows]
            missing = [m["fingerprint"] for m in rows if m["fingerprint"] not in found]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise CalibrationError(f"{path} cannot be read as an ensemble: {e!r}. Save it again.") from e
        if missing:
            raise CalibrationError(f"{path} needs oracles {missing}, here are {sorted(found)}. Give those it was made with.")
        members = [Member(found[m["fingerprint"]], m["weight"], s) for m, s in zip(rows, scales, strict=True)]
        return cls(members, raw["name"])


def _scale(settings: dict[str, Any]) -> Scale:
    fields = {k: v for k, v in settings.items() if k not in ("fingerprint", "weight", "scale")}
    if "references" in fields:
        fields["references"] = tuple(fields["references"])
    return _SCALES[settings["scale"]](**fields)


def _reference(scores: Sequence[float]) -> np.ndarray:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise SettingError(f"{values.size} reference scores, {int(np.isfinite(values).sum())} finite: at least 2 are due.")
    return values
