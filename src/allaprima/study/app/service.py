"""What the routes stand on: a store, its pictures, and when enough is known."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from allaprima.study.create import PICTURES, missing_files
from allaprima.study.outcomes import all_decided
from allaprima.study.store.store import StudyStore
from allaprima.study.votes import AssignedPair, StoredVote, StudyError

LOOK_SECONDS = 5.0
"""How often the folder is looked through for pictures that are gone."""
SIDES = {"left": 0, "right": 1}


class StudyService:
    """One study. Threads may share it."""

    def __init__(self, folder: Path, store: StudyStore) -> None:
        self.folder, self.store = folder, store
        self.asked, self.rules = store.questions, store.rules
        self._names = store.files()
        self._missing: frozenset[str] = frozenset()
        self._looked = float("-inf")
        self._stopped = False
        self._recheck()

    def about(self) -> dict[str, Any]:
        """Return what the page is told; nothing of methods."""
        return {
            "name": self.store.about["name"], "about": self.asked.about, "compares": self.asked.compares,
            "answers": ["left", "tie", "right"] if self.asked.compares else list(self.asked.answers),
            "questions": [{"name": q.name, "title": q.title, "ask": q.ask} for q in self.asked.questions],
        }  # fmt: skip

    def missing(self) -> frozenset[str]:
        """Pictures that are gone, as of a few seconds ago."""
        now = time.monotonic()
        if now - self._looked > LOOK_SECONDS:
            self._looked = now
            self._missing = frozenset(missing_files(self.folder, self._names))
        return self._missing

    def state(self, annotator: int) -> dict[str, Any]:
        """Return the pair to ask about now, if any, and how far the annotator is."""
        missing = self.missing()
        handed, progress = self.store.ask(annotator, self._stopped, missing)
        shown = None if handed is None else {"id": handed.slot, "kind": handed.kind, "prompt": handed.prompt}
        state = progress.state
        if handed is None and state in ("voting", "training", "qualification"):
            state = "waiting"  # what is left can't be shown at the moment
        return {"slot": shown, "progress": {**vars(progress), "state": state}, "missing_pictures": len(missing)}

    def picture(self, annotator: int, slot: str, side: str) -> bytes:
        """Return a side's picture. Raises `StudyError`."""
        if side not in SIDES:
            raise StudyError("not_found", "a pair has a left and a right picture.")
        name = self.store.handed(annotator, slot).files[SIDES[side]]
        try:
            return (self.folder / PICTURES / name).read_bytes()
        except OSError as e:
            self._looked = float("-inf")
            raise StudyError("picture_gone", "a picture of this pair can't be read: go on with another pair.") from e

    def vote(self, annotator: int, slot: str, answers: Mapping[str, Any], seconds: float) -> StoredVote:
        """Keep a vote given by sides. Raises `StudyError`, `SettingError`."""
        by_sides = self.asked.compares
        stored = self.store.vote(annotator, slot, (lambda h: by_method(answers, h)) if by_sides else answers, seconds)
        if stored.first and stored.kind == "study":
            self._recheck()
        return stored

    def feedback(self, annotator: int, slot: str, stored: StoredVote) -> dict[str, Any] | None:
        """Of a training pair: whether it was right, and why; by sides."""
        if stored.kind != "training":
            return None
        handed = self.store.handed(annotator, slot)
        expected = by_side(stored.expected, handed) if self.asked.compares else dict(stored.expected)
        right = all(stored.answers.get(q) == e for q, e in stored.expected.items())
        return {"right": right, "expected": expected, "why": stored.why}

    def _recheck(self) -> None:
        alpha = self.rules.stop_alpha
        if alpha is None or self._stopped or not self.asked.compares:
            return
        n = len(self.store.about["methods"])
        votes = self.store.votes()
        self._stopped = all_decided(votes, self.asked.main, self.rules.votes, alpha, n * (n - 1) // 2)


def by_method(answers: Mapping[str, Any], handed: AssignedPair) -> dict[str, Any]:
    """`left` and `right` as `a` and `b`; anything else as it is, to be refused by the question set."""
    other = "b" if handed.left == "a" else "a"
    sides = {"left": handed.left, "right": other, "a": "?", "b": "?"}
    return {q: sides.get(v, v) if isinstance(v, str) else "?" for q, v in answers.items()}


def by_side(answers: Mapping[str, str], handed: AssignedPair) -> dict[str, str]:
    """Return the way back."""
    other = "b" if handed.left == "a" else "a"
    sides = {handed.left: "left", other: "right"}
    return {q: sides.get(v, v) for q, v in answers.items()}
