"""What is asked of a pair, in the paper's order, and what may be answered.

An answer is kept by method, not by side: `a` and `b` are the pair's pictures, however they stood on the screen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from allaprima.core.errors import SettingError

OVERALL = "overall"


@dataclass(frozen=True)
class Question:
    """One factor of a comparison."""

    name: str
    title: str
    ask: str


@dataclass(frozen=True)
class QuestionSet:
    """Questions of one study, and the answers that each of them has."""

    name: str
    questions: tuple[Question, ...]
    answers: tuple[str, ...]
    """As they are kept. `a` and `b` are turned to sides on the page; others are shown as they are."""
    about: str
    """What the instruction page says first."""

    @property
    def names(self) -> tuple[str, ...]:
        """The questions' names, in order."""
        return tuple(q.name for q in self.questions)

    @property
    def compares(self) -> bool:
        """Whether answers prefer a picture; else they say how alike two pictures are."""
        return "a" in self.answers

    @property
    def main(self) -> str:
        """The question that decides: the last one."""
        return self.questions[-1].name

    def check(self, answers: Mapping[str, Any]) -> dict[str, str]:
        """Every question answered, nothing else. Raises `SettingError` that names the first fault."""
        odd = sorted(answers.keys() - {*self.names})
        if odd:
            raise SettingError(f"question={odd[0][:40]!r} is not asked here: {', '.join(self.names)} are.")
        for name in self.names:
            if answers.get(name) not in self.answers:
                said = str(answers.get(name))[:40]
                raise SettingError(f"{name}={said!r}: one of {', '.join(self.answers)} is due.")
        return {name: str(answers[name]) for name in self.names}


PREFERENCE = QuestionSet(
    "preference",
    (
        Question("alignment", "Match to the text", "Which picture shows better what the text says?"),
        Question("quality", "Image quality", "Which picture has fewer faults: blur, noise, broken shapes?"),
        Question("aesthetics", "Beauty", "Which picture is nicer to look at?"),
        Question(OVERALL, "Overall", "All in all, which picture do you prefer?"),
    ),
    ("a", "tie", "b"),
    "You will see a text and two pictures that were made from it. Say which picture is better, or that they are equal.",
)
DIVERSITY = QuestionSet(
    "diversity",
    (
        Question("angle", "Angle of view", "Are both seen from the same angle and distance?"),
        Question("background", "Background", "Is what lies behind and around the same?"),
        Question("object", "Main object", "Is the main object the same in form and colour?"),
        Question("style", "Style", "Are both drawn in the same style?"),
    ),
    ("similar", "unsure", "different"),
    "You will see a text and two pictures that were made from it. Say in what they are alike, and in what they differ.",
)
SETS = {s.name: s for s in (PREFERENCE, DIVERSITY)}


def question_set(name: str) -> QuestionSet:
    """By its name. Raises `SettingError`."""
    if name not in SETS:
        raise SettingError(f"questions={name!r} is not known: {', '.join(SETS)} are.")
    return SETS[name]
