"""The sequential policy: draft, score, draft again, then the teacher, and the best by the oracle is kept."""

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
class EarlyStop:
    """The clean prediction after a step is scored; below the threshold the run is given up.

    Args:
        step: Steps that have been taken, 1 the first.
        threshold: The least score to go on with.
    """

    step: int
    threshold: float

    def __post_init__(self) -> None:
        if self.step < 1:
            raise SettingError(f"step={self.step!r} of an early stop is out of range: 1 is after the first step.")
        if math.isnan(self.threshold):
            raise SettingError("threshold=nan of an early stop compares with nothing: expected a number.")


@dataclass(frozen=True)
class SequentialPolicy(DraftFirstPolicy):
    """Draft again below a threshold, then ask the teacher, up to so many times each, and keep the best by the oracle.

    The paper's policy (arXiv 2312.10835, algorithm 1) is one draft, one try of the teacher and `margin=inf`. Several drafts
    without a teacher are best of n with a stop; no drafts and several tries are the same of the teacher.

    Args:
        threshold: Score from which on the best draft so far is accepted.
        max_drafts: Drafts at most; 0 asks the teacher at once.
        max_teacher_tries: Tries of the teacher at most; 0 never asks it.
        action: What the teacher does: `refine` the best draft or `regenerate`; without drafts it regenerates.
        regenerate_below: With refining, drafts whose score is below this are regenerated instead.
        teacher_threshold: Score from which on a try of the teacher is the last.
        noise: Where the teacher's first try begins when it regenerates: with the `same` noise as the first draft, as in
            the paper, or a `fresh` one. Further tries are always fresh.
        margin: By how much the best draft must lead the teacher's best image to be kept; infinity never keeps it, as in
            the paper, and needs no score of a single try.
        draft_stops: Early stops of drafts. A last draft is stopped only where the teacher regenerates after it.
        teacher_stops: Early stops of the teacher's tries but the last.
    """

    threshold: float
    max_drafts: int = 1
    max_teacher_tries: int = 1
    action: Decision = Decision.REFINE
    regenerate_below: float | None = None
    teacher_threshold: float = -math.inf
    noise: Literal["same", "fresh"] = "same"
    margin: float = 0.0
    draft_stops: tuple[EarlyStop, ...] = ()
    teacher_stops: tuple[EarlyStop, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("max_drafts", self.max_drafts), ("max_teacher_tries", self.max_teacher_tries)):
            if not 0 <= value <= MAX_ATTEMPTS:
                raise SettingError(f"{name}={value!r} is out of range: 0..{MAX_ATTEMPTS} are possible, 1 to 4 are useful.")
        if not self.max_drafts and not self.max_teacher_tries:
            raise SettingError("max_drafts=0 and max_teacher_tries=0 generate nothing: allow one of them at least once.")
        if self.action not in (Decision.REFINE, Decision.REGENERATE):
            raise SettingError(f"action={str(self.action)!r} is not known: 'refine' or 'regenerate'.")
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
        return self.margin < math.inf or self._can_try_again

    @property
    def _can_try_again(self) -> bool:
        return self.max_teacher_tries > 1 and self.teacher_threshold > -math.inf

    @property
    def scores_previews(self) -> bool:
        """Whether clean predictions are scored on the way."""
        return bool(self.draft_stops or self.teacher_stops)

    def decide_without_draft(self, attempts: int) -> Decision:
        """Return REDRAFT while drafts are left, else REGENERATE."""
        return Decision.REDRAFT if attempts < self.max_drafts else Decision.REGENERATE

    def tries_again(self, score: float, tries: int) -> bool:
        """Whether the latest of the teacher's images falls short, and another try is left."""
        return tries < self.max_teacher_tries and not score >= self.teacher_threshold

    def teacher_noise(self, tries: int) -> int:
        """Return the number of the noise: the first try's is as `noise` says, further ones are fresh."""
        return tries + (self.noise == "fresh")

    def actions(self, strategy: Decision) -> frozenset[Decision]:
        """Accept; draft again and ask the teacher, where either is allowed."""
        found = {Decision.ACCEPT}
        if self.max_drafts > 1:
            found.add(Decision.REDRAFT)
        if self.max_teacher_tries:
            found.add(self.action)
            if self.regenerate_below is not None or not self.max_drafts:
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

    def early_threshold(self, teacher: bool, step: int, attempts: int) -> float | None:
        """Return the threshold of an early stop; None where there is none, and for a last attempt that nothing follows."""
        stops, most = (self.teacher_stops, self.max_teacher_tries) if teacher else (self.draft_stops, self.max_drafts)
        followed = not teacher and self.max_teacher_tries > 0 and self.action is Decision.REGENERATE
        if attempts + 1 >= most and not followed:
            return None
        return next((stop.threshold for stop in stops if stop.step == step), None)
