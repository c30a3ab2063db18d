"""A policy from what a caller says: a threshold, a budget, or a mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from allaprima.calibration.artifact import Calibration
from allaprima.cascade.policy import AlwaysPolicy, Decision, Policy, ThresholdPolicy
from allaprima.cascade.sequential import SequentialPolicy
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import CalibrationError, SettingError


def student_settings(settings: CascadeSettings) -> dict[str, Any]:
    """Return the settings that change a draft, and so its score: a calibration holds for these only."""
    names = ("student_steps", "student_solver", "student_guidance", "height", "width")
    seldom = ("student_guidance_rescale", "clip_skip")
    return {k: v for k, v in settings.to_dict().items() if k in (*names, *seldom)}


def action_settings(settings: CascadeSettings) -> dict[str, Any]:
    """Return the settings that change what an escalation makes and costs."""
    return {k: v for k, v in settings.to_dict().items() if k.startswith("teacher_") or k in ("strategy", "sigma")}


@dataclass(frozen=True)
class AttemptLimits:
    """How often student and teacher may be asked for one image; None: once, as in the paper.

    Args:
        max_drafts: Drafts at most; below the threshold another is generated.
        max_teacher_tries: Tries of the teacher at most; the best image by the oracle is kept.
        noise: Where the teacher begins when it regenerates: with the `same` noise as the first draft, or a `fresh` one.
    """

    max_drafts: int | None = None
    max_teacher_tries: int | None = None
    noise: Literal["same", "fresh"] | None = None

    def named(self) -> str:
        """Return what is given, as text."""
        return ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if v is not None)


ONE_ATTEMPT = AttemptLimits()


def make_policy(
    calibration: Calibration | None,
    fingerprints: Callable[[], dict[str, str]],
    settings: CascadeSettings,
    threshold: float | None = None,
    budget: float | None = None,
    mode: str = "adaptive",
    steer: bool = False,
    attempts: AttemptLimits = ONE_ATTEMPT,
) -> Policy:
    """Return the policy of a run (`AdaptivePipeline.policy`).

    Raises:
        SettingError: For a threshold, a budget, a mode or steering that contradict each other.
        CalibrationError: Without a threshold, where there is no calibration for these models and settings.
    """
    if attempts != ONE_ATTEMPT and (steer or budget is not None or mode != "adaptive"):
        other = "steer" if steer else f"mode={mode!r}" if mode != "adaptive" else f"budget={budget!r}"
        raise SettingError(
            f"{attempts.named()} and {other} contradict each other: several attempts are decided by a threshold. Give a"
            " threshold, or run `allaprima calibrate --policy sequential` with that budget."
        )
    if steer and (mode != "adaptive" or threshold is not None):
        given = f"threshold={threshold!r}" if mode == "adaptive" else mode
        raise SettingError(f"steering moves a calibrated threshold to keep a budget, not {given}: leave one out.")
    fixed = {"student-only": Decision.ACCEPT, "teacher-only": Decision.REGENERATE, "refine-all": Decision.REFINE}
    if mode in fixed:
        if threshold is not None or budget is not None:
            raise SettingError(f"{mode} takes no threshold and no budget: leave one of them out.")
        return AlwaysPolicy(fixed[mode])
    if mode != "adaptive":
        raise SettingError(f"mode={mode!r} is not known: adaptive, {', '.join(fixed)} are.")
    if threshold is not None and budget is not None:
        raise SettingError(f"threshold={threshold!r} and budget={budget!r} contradict each other: give one.")
    if threshold is None:
        if calibration is None:
            raise CalibrationError("no calibration for this card: run `allaprima calibrate`, or give a threshold.")
        calibration.check(student_settings(settings), fingerprints())
        action = action_settings(settings)
        made = calibration.steered(budget, action) if steer else calibration.policy_for(budget, action)
        if attempts == ONE_ATTEMPT:
            return made
        if made.threshold is None:
            raise SettingError(f"{attempts.named()}: this calibration's policy has no threshold to decide by. Give one.")
        threshold = made.threshold
    if attempts == ONE_ATTEMPT:
        return ThresholdPolicy(threshold, Decision(settings.strategy))
    return SequentialPolicy(
        threshold, 1 if attempts.max_drafts is None else attempts.max_drafts,
        1 if attempts.max_teacher_tries is None else attempts.max_teacher_tries, Decision(settings.strategy),
        teacher_threshold=threshold, noise=attempts.noise or "same",
    )  # fmt: skip
