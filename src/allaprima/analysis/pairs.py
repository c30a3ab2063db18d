"""What was measured of every pair of pictures, and what an observation says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from allaprima.analysis.association import association
from allaprima.analysis.geometry import Trajectories
from allaprima.core.errors import SettingError
from allaprima.evaluation.intervals import Interval, mean_interval

CONFIRMED, REFUTED, NOT_SEEN = "confirmed", "refuted", "not seen here"


@dataclass(frozen=True)
class AnalyzedPairs:
    """N pairs: student's and teacher's picture of one prompt and seed. Columns are `(N,)`."""

    prompts: Sequence[str]
    """The different ones."""
    prompt: np.ndarray
    """`(N,)`: which of them."""
    seed: np.ndarray
    columns: Mapping[str, np.ndarray]
    labels: Mapping[str, str]
    """What a column, or a pair of columns `X_student`, `X_teacher`, is, plainly: which network, which replacement."""
    student: Tensor
    """`(N, 3, H, W)` uint8."""
    teacher: Tensor
    truth: str
    """Stem of the columns that tell whose picture is preferred: `judge`, or `oracle` for want of one."""
    tie: float
    """Neither is preferred when the truth differs by this or less."""
    trajectories: Trajectories | None = None

    def __post_init__(self) -> None:
        n = len(self.prompt)
        odd = [k for k, v in self.columns.items() if v.shape != (n,)]
        if odd or len(self.student) != n or len(self.teacher) != n or not n:
            raise SettingError(f"columns {odd} or pictures are not {n} of each: one value a pair, at least one, is due.")

    def has(self, *names: str) -> bool:
        """Whether all of these columns were measured."""
        return all(name in self.columns for name in names)

    def gap(self, stem: str) -> np.ndarray:
        """Student's minus teacher's of a score, `(N,)`."""
        return self.columns[f"{stem}_student"] - self.columns[f"{stem}_teacher"]

    @property
    def outcome(self) -> np.ndarray:
        """`(N,)`: 1 where the student's picture is preferred, -1 the teacher's, 0 neither."""
        gap = self.gap(self.truth)
        return np.where(np.abs(gap) <= self.tie, 0, np.sign(gap)).astype(int)

    def mean(self, column: str | np.ndarray) -> Interval:
        """Mean over prompts with its 95 % interval."""
        values = self.columns[column] if isinstance(column, str) else column
        return mean_interval(values.astype(float).tolist(), self.prompt.tolist())


@dataclass(frozen=True)
class Finding:
    """One claim of the paper's, and what this pair says to it."""

    key: str
    observation: int
    """1 distance, 2 complexity, 3 prompts, 4 curvature; 0: none of the four."""
    claim: str
    statistic: str
    interval: Interval
    verdict: str

    @property
    def number(self) -> str:
        """The statistic with its interval, for people."""
        if np.isnan(self.interval.mean):
            return f"no {self.statistic}: one of the two is the same for every pair"
        return f"{self.statistic} {self.interval}"

    @property
    def sentence(self) -> str:
        """For people."""
        return f"{self.claim[0].upper()}{self.claim[1:]}: {self.verdict} ({self.number})."

    def row(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "sentence": self.sentence}


@dataclass(frozen=True)
class Observation:
    """What one file of this room found."""

    key: str
    title: str
    paper: str
    """Where the paper has it, and what it saw there."""
    findings: tuple[Finding, ...] = ()
    facts: tuple[str, ...] = ()
    """Further sentences with numbers."""
    numbers: Mapping[str, Any] = field(default_factory=dict[str, Any])
    note: str = ""
    """What stands for something else here."""
    missing: str = ""
    """Why it was not measured, if it wasn't."""

    def row(self) -> dict[str, Any]:
        """JSON-ready."""
        numbers = {k: asdict(v) if isinstance(v, Interval) else v for k, v in self.numbers.items()}
        return {
            "title": self.title, "paper": self.paper, "findings": [f.row() for f in self.findings],
            "facts": list(self.facts), "numbers": numbers, "note": self.note, "missing": self.missing,
        }  # fmt: skip


def verdict(interval: Interval, expected: int) -> str:
    """`expected`: the sign that the paper saw. An interval that holds 0 shows nothing, whatever its middle."""
    if not interval.low > 0 and not interval.high < 0:
        return NOT_SEEN
    return CONFIRMED if (interval.low > 0) == (expected > 0) else REFUTED


def finding(
    pairs: AnalyzedPairs, key: str, observation: int, claim: str, x: str | np.ndarray, y: str | np.ndarray, expected: int
) -> Finding:
    """By Spearman's rank correlation of two columns. A measure that is the same everywhere shows nothing."""
    a, b = (pairs.columns[v] if isinstance(v, str) else v for v in (x, y))
    try:
        rho = association(a, b, pairs.prompt).rho
    except SettingError:
        rho = Interval(float("nan"), float("nan"), float("nan"))
    return Finding(key, observation, claim, "rank correlation", rho, verdict(rho, expected))
