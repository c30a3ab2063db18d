"""Diffusers' schedulers as solvers of ours by name: which one, at which times, and with which eta."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from allaprima.core.errors import ModelError
from allaprima.diffusion.schedules import SPACINGS, DiscreteVP, Schedule
from allaprima.diffusion.solvers.tcd import ETA

SOLVERS: Mapping[str, str] = {
    "DDIMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpm_solver",
    "UniPCMultistepScheduler": "unipc",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "heun",
    "LCMScheduler": "lcm",
    "FlowMatchLCMScheduler": "consistency",
    "TCDScheduler": "tcd",
}
"""Class of a scheduler -> the solver of ours that stands for it."""
USUAL: Mapping[str, str] = {"dpm_solver": "linspace", "unipc": "linspace"}
"""The spacing of a solver's name without one, where that isn't "leading"."""
ORIGINAL = 50
"""LCM's and TCD's times are some of so many (`original_inference_steps`) unless the scheduler says otherwise."""
SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
"""Noise levels in place of times, which no solver here has."""


def solver_of(scheduler: Any, schedule: Schedule, steps: int, usual: str, eta: float = ETA) -> str:
    """The solver that paints as a scheduler does, by name with its spacing; `usual` where the class isn't known.

    `steps`: how many there will be; only times that have no name, LCM's of another `original_inference_steps`, depend on it,
    and are said one by one. `eta`: what the pipeline's call gives a TCDScheduler.
    Departures: "leading" times have an offset of 1 here, whatever `steps_offset` says, and the last move but `tcd`'s is to
    the clean end, whatever `set_alpha_to_one` says. Raises `ModelError` for noise levels in place of times.
    """
    kind, config = type(scheduler).__name__, scheduler.config
    name = SOLVERS.get(kind)
    if name is None or not isinstance(schedule, DiscreteVP):
        return name or usual
    odd = next((key for key in SIGMAS if config.get(key)), None)
    if odd is not None:
        raise ModelError(
            f"{kind} has {odd}={config[odd]!r}: solvers here take their times from a spacing ({', '.join(SPACINGS)}). Name a"
            f" solver yourself (student_solver=, teacher_solver='{name}'), make the scheduler again with {odd}=False, or use"
            ' the pipelines whole, with level="images".'
        )
    if name in ("lcm", "tcd"):
        front = name if name == "lcm" or eta == ETA else f"{name}:{eta:g}"
        return (
            front
            if int(config.get("original_inference_steps") or ORIGINAL) == ORIGINAL
            else f"{front}@{_times(scheduler, steps)}"
        )
    spacing = str(config.get("timestep_spacing", "leading"))
    return name if spacing == USUAL.get(name, "leading") else f"{name}@{spacing}"


def _times(scheduler: Any, steps: int) -> str:
    """A scheduler's own times, with commas between; its copy is asked, for asking sets them."""
    asked = copy.deepcopy(scheduler)
    try:
        asked.set_timesteps(steps)
    except ValueError as e:
        raise ModelError(f"{type(scheduler).__name__} has no {steps} times: {e}. Give other steps, or name a solver.") from e
    return ",".join(f"{float(t):g}" for t in asked.timesteps.tolist())
