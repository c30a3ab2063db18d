"""The sequential policy: draft, look, draft again, then the teacher, and the best by the oracle is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from allaprima.cascade.policy import Context, Decision, DraftFirstPolicy
from allaprima.core.errors import SettingError

MAX_ATTEMPTS = 64
NOISES = ("same", "fresh")


@dataclass(frozen=True)
class EarlyLook:
    """The oracle looks at the clean prediction after a step; below the threshold the run is given up.

    Args:
        step: Steps that have been taken, 1 the first.
        threshold: The least score to go on with.
    """

    step: int
    threshold: float

    def __post_init__(self) -> None:
        if self.step < 1:
            raise SettingError(f"step={self.step!r} of an early look is out of range: 1 is after the first step.")
        if math.isnan(self.threshold):
            raise SettingError("threshold=nan of an early look compares with nothing: expected a number.")


@dataclass(frozen=True)
class SequentialPolicy(DraftFirstPolicy):
    """Draft again below a threshold, then ask the teacher, up to so many times each, and keep the best by the oracle.

    The paper's policy (arXiv 2312.10835, algorithm 1) is one draft, one try of the teacher and `keep_best=False`. Several
    drafts without a teacher are best of n with a stop; no drafts and several tries are the same of the teacher.

    Args:
        threshold: Score from which on the best draft so far is accepted.
        max_drafts: Drafts at most; 0 asks the teacher at once.
        max_teacher_tries: Tries of the teacher at most; 0 never asks it.
        action: What the teacher does: `refine` the best draft or `regenerate`.
        regenerate_below: With refining, drafts whose score is below this are regenerated instead.
        teacher_threshold: Score from which on a try of the teacher is the last.
        noise: Where the teacher's first try begins when it regenerates: with the `same` noise as the first draft, as in
            the paper, or a `fresh` one. Further tries are always fresh.
        keep_best: Whether the teacher's images are scored too, and the best of drafts and tries is kept.
        margin: By how much a draft must lead the teacher's best image to be kept.
        draft_looks: Early looks at drafts. A last draft is looked at early only where the teacher regenerates after it.
        teacher_looks: Early looks at the teacher's tries but the last.
    """

    threshold: float
    max_drafts: int = 1
    max_teacher_tries: int = 1
    action: Decision = Decision.REGENERATE
    regenerate_below: float | None = None
    teacher_threshold: float = -math.inf
    noise: Literal["same", "fresh"] = "same"
    keep_best: bool = True
    margin: float = 0.0
    draft_looks: tuple[EarlyLook, ...] = ()
    teacher_looks: tuple[EarlyLook, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("max_drafts", self.max_drafts), ("max_teacher_tries", self.max_teacher_tries)):
            if not 0 <= value <= MAX_ATTEMPTS:
                raise SettingError(f"{name}={value!r} is out of range: 0..{MAX_ATTEMPTS} are possible, 1 to 4 are useful.")
        if not self.max_drafts and not self.max_teacher_tries:
            raise SettingError("max_drafts=0 and max_teacher_tries=0 generate nothing: allow one of them at least once.")
        if self.action not in (Decision.REFINE, Decision.REGENERATE):
            raise SettingError(f"action={str(self.action)!r} is not known: 'refine' or 'regenerate'.")
        if self.action is Decision.REFINE and not self.max_drafts:
            raise SettingError("action='refine' with max_drafts=0 has nothing to refine: allow a draft, or regenerate.")
        if self.noise not in NOISES:
            raise SettingError(f"noise={self.noise!r} is not known: {', '.join(NOISES)} are.")
        for name, value in (("threshold", self.threshold), ("teacher_threshold", self.teacher_threshold)):
            if math.isnan(value):
                raise SettingError(f"{name}=nan compares with nothing: expected a number.")
        if not self.margin >= 0:
            raise SettingError(f"margin={self.margin!r} is below 0: drafts that are worse would be kept. Use 0 or more.")
        if self.regenerate_below is not None and not self.regenerate_below <= self.threshold:
            raise SettingError(
                f"regenerate_below={self.regenerate_below!r} is above threshold={self.threshold!r}: drafts between them"
                " would be accepted and regenerated. Swap the two."
            )

    @property
    def rechecks(self) -> bool:
        """Whether the teacher's images are scored."""
        return self.keep_best or self.tries_again

    @property
    def tries_again(self) -> bool:
        """Whether a teacher's image can be followed by another try."""
        return self.max_teacher_tries > 1 and self.teacher_threshold > -math.inf

    def actions(self, strategy: Decision) -> frozenset[Decision]:
        """Accept; draft again and ask the teacher, where either is allowed."""
        found = {Decision.ACCEPT}
        if self.max_drafts > 1:
            found.add(Decision.REDRAFT)
        if self.max_teacher_tries:
            found.add(self.action)
            if self.regenerate_below is not None:
                found.add(Decision.REGENERATE)
        return frozenset(found)

    def route(self, context: Context) -> list[Decision | None]:
        """Ask the teacher at once where no drafts are allowed."""
        return [None if self.max_drafts else Decision.REGENERATE] * len(context.prompts)

    def decide(self, scores: Sequence[float], context: Context | None = None) -> list[Decision]:
        """Accept, draft again, or ask the teacher; a score that is not a number falls short."""
        attempts = [self.max_drafts] * len(scores) if context is None else context.attempts
        return [self._one(s, n) for s, n in zip(scores, attempts, strict=True)]

    def _one(self, score: float, attempts: int) -> Decision:
        if score >= self.threshold:
            return Decision.ACCEPT
        if attempts < self.max_drafts:
            return Decision.REDRAFT
        if not self.max_teacher_tries:
            return Decision.ACCEPT
        if self.regenerate_below is not None and not score >= self.regenerate_below:
            return Decision.REGENERATE
        return self.action

    def look_at(self, teacher: bool, step: int, attempts: int) -> float | None:
        """Return the threshold of an early look, None where there is none.

        Args:
            teacher: Whether the teacher's run is asked about.
            step: Steps that the run has taken.
            attempts: Drafts, or tries of the teacher, before this one.
        """
        looks, most = (self.teacher_looks, self.max_teacher_tries) if teacher else (self.draft_looks, self.max_drafts)
        followed = not teacher and self.max_teacher_tries > 0 and self.action is Decision.REGENERATE
        if attempts + 1 >= most and not followed:
            return None
        return next((look.threshold for look in looks if look.step == step), None)
