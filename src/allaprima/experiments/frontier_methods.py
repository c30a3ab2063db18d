"""What `allaprima frontier` paints: methods that treat every prompt alike, and ways of mending drafts that fall short."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from allaprima.cascade.policy import Decision
from allaprima.cascade.settings import CascadeSettings
from allaprima.diffusion.noising import Variance
from allaprima.experiments.image_store import Painting

USUAL: Mapping[str, None] = {"teacher_last_time": None, "teacher_guidance_interval": None}
"""A solver's own grid and guidance at every step: how a teacher is used before anything is tuned."""


def usual(base: CascadeSettings, guidance: float | None, solver: str, steps: int) -> CascadeSettings:
    """The teacher before anything was tuned for the cascade; `guidance` None is the card's scale."""
    scale = {} if guidance is None else {"teacher_guidance": guidance}
    return base.changed(teacher_solver=solver, teacher_steps=steps, **USUAL, **scale)


def baseline(base: CascadeSettings, guidance: float | None) -> Painting:
    """What every method is compared with, picture by picture: the paper's DDIM 50."""
    return Painting("DDIM 50", "teacher-only", usual(base, guidance, "ddim", 50))


def singles(base: CascadeSettings, quick: bool, guidance: float | None) -> dict[str, list[tuple[float, Painting]]]:
    """Methods that treat every prompt alike: method -> (mean steps, painting)."""

    def teacher(method: str, solver: str, steps: int, **more: Any) -> tuple[float, Painting]:
        settings = usual(base, guidance, solver, steps).changed(**more)
        return steps, Painting(f"{method} {steps}", "teacher-only", settings)

    def refined(steps: int) -> tuple[float, Painting]:
        settings = dataclasses.replace(base, strategy="refine", sigma=Variance(0.7), teacher_steps=steps)
        return base.student_steps + steps, Painting(f"refine all {steps}", "refine-all", settings)

    student = dataclasses.replace(base)
    own: dict[str, Any] = {k: getattr(base, k) for k in USUAL}
    rows = {
        "student": [(float(base.student_steps), Painting("student", "student-only", student))],
        "teacher, DDIM": [teacher("DDIM", "ddim", n) for n in (50,)],
        "teacher, DPM-Solver++": [teacher("DPM-Solver++", "dpm_solver", n) for n in (10, 25)],
        "refine all": [refined(n) for n in (5, 12)],
    }
    if own != USUAL:
        rows["teacher, card's settings"] = [
            teacher("card's", base.teacher_solver, n, teacher_guidance=base.teacher_guidance, **own) for n in (8, 14)
        ]
    if not quick:
        rows["teacher, UniPC"] = [teacher("UniPC", "unipc", 10)]
        rows["Restart"] = [teacher("Restart", "restart", 15)]
    return rows


def actions(base: CascadeSettings, quick: bool) -> dict[str, tuple[Decision, Painting]]:
    """What may be done with drafts that fall short."""
    steps = ((14, "regenerate"), (12, "refine")) if quick else (
        *((n, "regenerate") for n in (8, 14)), *((n, "refine") for n in (5, 12)),
    )  # fmt: skip
    made: dict[str, tuple[Decision, Painting]] = {}
    for n, strategy in steps:
        if strategy == "regenerate":
            settings = dataclasses.replace(base, teacher_steps=n)
            made[f"regenerate {n}"] = Decision.REGENERATE, Painting(f"card's grid {n}", "teacher-only", settings)
        else:
            settings = dataclasses.replace(base, strategy="refine", sigma=Variance(0.7), teacher_steps=n)
            made[f"refine {n}"] = Decision.REFINE, Painting(f"refine all {n}", "refine-all", settings)
    return made
