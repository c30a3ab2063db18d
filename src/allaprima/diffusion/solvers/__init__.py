"""Solvers, one file each, found by name."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from allaprima.core.errors import SettingError
from allaprima.diffusion.schedule import Schedule
from allaprima.diffusion.solvers.solver import Solver

SOLVERS = {
    "ddim": "ddim:DDIM",
    "dpm_solver": "dpm_solver:DPMSolverPP2M",
    "unipc": "unipc:UniPC",
    "euler": "euler:Euler",
    "heun": "heun:Heun",
    "consistency": "consistency:Consistency",
    "lcm": "consistency:lcm",
    "restart": "restart:Restart",
}
"""Name -> `module:class` in this package, imported when asked for."""
TAKE_LAST_TIME = frozenset({"ddim", "dpm_solver", "unipc", "euler"})
"""Solvers with the option `last_time`: even times that end there, instead of their usual grid."""


def make_solver(name: str, schedule: Schedule, **options: Any) -> Solver:
    """A solver by name; raises `SettingError` with the nearest name for an unknown one."""
    if name not in SOLVERS:
        near = difflib.get_close_matches(name, SOLVERS, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise SettingError(f"solver={name!r} is not known: {', '.join(SOLVERS)} are.{hint}")
    module, cls = SOLVERS[name].split(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), cls)(schedule, **options)
