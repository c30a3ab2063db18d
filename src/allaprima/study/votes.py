"""What a study knows, as plain values: no database, no web. The store makes them, pages and reports read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from allaprima.core.errors import AllaprimaError
from allaprima.study.design import Kind, Side


class StudyError(AllaprimaError):
    """A study, an invitation or a vote that can't be used. `code` names the reason for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class AssignedPair:
    """A pair that one annotator is asked about now."""

    slot: str
    """Random; tells nothing about pair or method."""
    kind: Kind
    prompt: str
    left: Side
    files: tuple[str, str]
    """Names in the study's folder, left and right as they are shown."""


@dataclass(frozen=True)
class AnnotatorProgress:
    """Where an annotator is. `state`: training, qualification, voting, waiting, done, failed or stopped."""

    state: str
    votes: int
    """Of the study's own pairs and attention checks."""
    of: int
    """That this annotator could give in all, at the moment."""
    training_left: int = 0
    qualification_left: int = 0


@dataclass(frozen=True)
class StoredVote:
    """A vote that is on the disk. `first` is false when it was there already and nothing was changed."""

    first: bool
    answers: Mapping[str, str]
    kind: Kind
    expected: Mapping[str, str] = field(default_factory=dict[str, str])
    why: str = ""


@dataclass(frozen=True)
class Vote:
    """One vote with its pair, as reports and exports read it. Answers are by method: `a`, `b`, `tie`, or the set's own."""

    annotator: int
    pair: int
    kind: Kind
    prompt: str
    seed: int | None
    methods: tuple[str, str]
    files: tuple[str, str]
    band: int | None
    distance: float | None
    left: Side
    answers: Mapping[str, str]
    expected: Mapping[str, str]
    seconds: float
    """Between handing out and voting, while the page was in sight, as the page says; at most what the server saw."""
    at: str
    """UTC, ISO 8601."""

    @property
    def right(self) -> bool | None:
        """Whether every known answer was given; None where none is known."""
        return all(self.answers.get(q) == e for q, e in self.expected.items()) if self.expected else None

    def row(self) -> dict[str, Any]:
        """Flat, for tables."""
        return {
            "annotator": self.annotator, "pair": self.pair, "kind": self.kind, "prompt": self.prompt, "seed": self.seed,
            "method_a": self.methods[0], "method_b": self.methods[1], "a": self.files[0], "b": self.files[1],
            "left": self.left, "band": self.band, "distance": self.distance,
            **{f"answer_{q}": v for q, v in self.answers.items()},
            "right": self.right, "seconds": self.seconds, "at": self.at,
        }  # fmt: skip
