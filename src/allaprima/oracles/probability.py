"""From a score to a probability: P(the draft is at least as good as the teacher's picture | score).

Platt's logistic `sigmoid(slope * score + offset)` (with the offset fixed at 0 and a logit for a score: temperature
scaling, arXiv 1706.04599, slope = 1 / T), or isotonic regression (pool adjacent violators). Both rise with the score, so
a cascade decides alike by the score at tau and by the probability at `calibrator(tau)`. Isotonic regression has steps:
scores on one step become equal, and a threshold inside a step accepts the whole of it.

Labels are wins of the draft, `(N,)` in [0, 1]: 1 at least as good, 0 worse, or a share of votes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from allaprima.core.errors import CalibrationError, SettingError
from allaprima.oracles.oracle import Oracle

SCHEMA = 1


@dataclass(frozen=True)
class Logistic:
    """`sigmoid(slope * score + offset)`, slope above 0. In float64 it is exactly 1 from an argument of about 37 on."""

    slope: float
    offset: float = 0.0

    @classmethod
    def fit(cls, scores: Sequence[float], wins: Sequence[float], offset: bool = True) -> Logistic:
        """Maximum likelihood with Platt's targets, (N+ + 1) / (N+ + 2) and 1 / (N- + 2), in place of 1 and 0.

        They keep the slope finite when some threshold parts wins from losses; with many labels they change nothing.
        `offset=False` fits the temperature alone, for scores that are logits. Raises `CalibrationError` when the
        likelihood falls with the score: such an oracle points the wrong way, or knows nothing.
        """
        from scipy.optimize import minimize
        from scipy.special import expit

        s, w = _checked(scores, wins)
        target = w * (w.sum() + 1) / (w.sum() + 2) + (1 - w) / ((1 - w).sum() + 2)
        # Standardised: the scores' unit must not decide how well the optimiser converges.
        centre, unit = (float(s.mean()) if offset else 0.0), float(s.std() if offset else np.sqrt((s**2).mean()))
        if unit == 0:
            raise SettingError(f"all {len(s)} scores are {s[0]!r}: they tell nothing about the label.")
        z = (s - centre) / unit

        def nll(x: np.ndarray) -> tuple[float, np.ndarray]:
            logit = x[0] * z + x[1]
            d = (expit(logit) - target) / len(z)
            return float((np.logaddexp(0, logit) - target * logit).mean()), np.array([d @ z, d.sum() if offset else 0.0])

        slope, intercept = minimize(nll, np.zeros(2), jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-10}).x
        if slope <= 0:
            raise CalibrationError(
                f"the win probability does not rise with the score (slope {slope / unit:.3g}, {len(s)} labels): this oracle"
                " can't tell. Check the labels' direction (1: the draft is at least as good), or use another oracle."
            )
        return cls(float(slope / unit), float(intercept - slope * centre / unit))

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """`(B,) -> (B,)` in [0, 1]."""
        return torch.sigmoid(torch.as_tensor(self.slope * np.asarray(scores, dtype=np.float64) + self.offset)).numpy()


@dataclass(frozen=True)
class Isotonic:
    """The nondecreasing function nearest to the labels in squares; linear between the scores seen, constant beyond."""

    scores: tuple[float, ...]
    """Increasing: the ends of the steps."""
    values: tuple[float, ...]

    @classmethod
    def fit(cls, scores: Sequence[float], wins: Sequence[float]) -> Isotonic:
        """Pool adjacent violators; equal scores are pooled first, as one function value is due for them."""
        from scipy.optimize import isotonic_regression

        s, w = _checked(scores, wins)
        x, index, counts = np.unique(s, return_inverse=True, return_counts=True)
        y = isotonic_regression(np.bincount(index, w) / counts, weights=counts).x
        # Of a step only its ends are needed.
        inner = np.zeros(len(x), dtype=bool)
        inner[1:-1] = (y[1:-1] == y[:-2]) & (y[1:-1] == y[2:])
        return cls(tuple(x[~inner].tolist()), tuple(y[~inner].tolist()))

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """`(B,) -> (B,)` in [0, 1]."""
        return np.interp(scores, np.asarray(self.scores), np.asarray(self.values))


Calibrator = Logistic | Isotonic
_KINDS: dict[str, type[Logistic] | type[Isotonic]] = {"logistic": Logistic, "isotonic": Isotonic}


class CalibratedOracle:
    """An oracle whose score is the probability that the draft is at least as good as the teacher's picture."""

    def __init__(self, oracle: Oracle, calibrator: Calibrator) -> None:
        self.oracle, self.calibrator, self.cost = oracle, calibrator, oracle.cost
        kind = next(k for k, v in _KINDS.items() if isinstance(calibrator, v))
        self._settings = {"schema": SCHEMA, "oracle": oracle.fingerprint, "kind": kind, **asdict(calibrator)}
        self.name = f"{oracle.name}, {kind}"
        self.fingerprint = hashlib.sha256(json.dumps(self._settings).encode()).hexdigest()[:16]

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """`images: (B, 3, H, W)` in [0, 1] with their prompts -> `(B,)` float64 in [0, 1]; NaN stays NaN."""
        raw = self.oracle.score(images, prompts)
        return torch.from_numpy(self.calibrator(raw.double().cpu().numpy())).to(raw.device)

    def threshold(self, tau: float) -> float:
        """Return the probability at which this oracle decides as the wrapped one does at `tau`."""
        return float(self.calibrator(np.asarray([tau]))[0])

    def save(self, path: Path) -> None:
        """Write the calibrator and the oracle's fingerprint, as JSON."""
        path.write_text(json.dumps(self._settings, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path, oracle: Oracle) -> CalibratedOracle:
        """Inverse of `save`. Raises `CalibrationError` for an unreadable file or another oracle."""
        try:
            raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            schema, owner, kind = raw.pop("schema"), raw.pop("oracle"), _KINDS[raw.pop("kind")]
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
            calibrator = kind(**fields)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise CalibrationError(f"{path} cannot be read as a calibrated oracle: {e!r}. Fit and save it again.") from e
        if (schema, owner) != (SCHEMA, oracle.fingerprint):
            raise CalibrationError(
                f"{path} was made for oracle {owner!r}, schema {schema}; this is {oracle.fingerprint!r}, schema {SCHEMA}."
                " Fit it again on this oracle's scores."
            )
        return cls(oracle, calibrator)


def _checked(scores: Sequence[float], wins: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    s, w = np.asarray(scores, dtype=np.float64), np.asarray(wins, dtype=np.float64)
    if s.ndim != 1 or s.shape != w.shape or not len(s) or not np.isfinite(s).all():
        raise SettingError(f"scores of shape {s.shape} for labels of shape {w.shape}: one finite score a label is due.")
    if not ((w >= 0) & (w <= 1)).all():
        raise SettingError(f"labels from {w.min()!r} to {w.max()!r}: they lie in [0, 1].")
    return s, w
