"""Solvers, one file each, found by name; `NAME@SPACING` paints at other times than the solver's usual ones.

`euler@trailing`, `ddim@leading`, `lcm@800` (the times themselves, with commas between); `tcd:0.5` has an option in its name.
One string says it all, in a card, a call, a record and a calibration.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from allaprima.core.errors import SettingError
from allaprima.diffusion.schedules import DiscreteVP, Schedule, Spacing
from allaprima.diffusion.solvers.solver import Solver

SOLVERS = {
    "ddim": "ddim:DDIM",
    "dpm_solver": "dpm_solver:DPMSolverPP2M",
    "unipc": "unipc:UniPC",
    "euler": "euler:Euler",
    "euler_ancestral": "euler_ancestral:EulerAncestral",
    "heun": "heun:Heun",
    "consistency": "consistency:Consistency",
    "lcm": "consistency:lcm",
    "tcd": "tcd:TCD",
    "restart": "restart:Restart",
}
"""Name -> `module:class` in this package, imported when asked for."""
TAKE_LAST_TIME = frozenset({"ddim", "dpm_solver", "unipc", "euler"})
"""Solvers with the option `last_time`: even times that end there, instead of their usual grid."""


def solver_name(spec: str) -> str:
    """`tcd` of `tcd:0.5@trailing`."""
    return spec.partition("@")[0].partition(":")[0]


def make_solver(spec: str, schedule: Schedule, **options: Any) -> Solver:
    """A solver by name, `NAME[:ETA][@SPACING]`.

    Raises `SettingError` for an unknown name (with the nearest), an unknown spacing, an option or schedule that doesn't fit.
    """
    front, at, spacing = spec.partition("@")
    name, colon, eta = front.partition(":")
    _check_name(name)
    module, cls = SOLVERS[name].split(":")
    if colon:
        if name != "tcd":
            raise SettingError(f"solver={spec!r}: {name} has no eta; tcd:0.5 has. Leave {colon}{eta} out.")
        options["eta"] = importlib.import_module(f"{__name__}.tcd").eta_of(eta)
    if at:
        if not isinstance(schedule, DiscreteVP):
            raise SettingError(
                f"solver={spec!r}: a {type(schedule).__name__} schedule has one spacing, its shift. Leave {at}{spacing} out."
            )
        schedule = schedule.with_timestep_spacing(_spacing(spacing))
    return getattr(importlib.import_module(f"{__name__}.{module}"), cls)(schedule, **options)


def check_solver(spec: str) -> None:
    """Raise `SettingError` for what `make_solver` can't read, whatever the schedule."""
    _check_name(solver_name(spec))
    make_solver(spec.partition("@")[0], _ANY)
    if "@" in spec:
        _ANY.with_timestep_spacing(_spacing(spec.partition("@")[2]))


def _check_name(name: str) -> None:
    if name not in SOLVERS:
        near = difflib.get_close_matches(name, SOLVERS, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise SettingError(f"solver={name!r} is not known: {', '.join(SOLVERS)} are.{hint}")


def _spacing(text: str) -> Spacing:
    try:
        return tuple(float(v) for v in text.split(","))
    except ValueError:
        return text


_ANY = DiscreteVP.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
"""Stable Diffusion's schedule, to try names on."""
