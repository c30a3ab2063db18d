"""From painted pairs to columns: each measure by its name, with a plain label of what it is."""

from __future__ import annotations

from collections.abc import Sequence

from allaprima.core.errors import SettingError

MEASURES = {
    "distance": "between student's and teacher's picture, its bands, and the gap in quality",
    "lpips": "a second distance, of the LPIPS kind (slow)",
    "complexity": "of the pictures",
    "length": "of the prompts",
    "influence": "of the prompts, by cross-attention (slow)",
    "curvature": "of the trajectories",
    "decisions": "accuracy of the oracle over k, and of simulated oracles",
    "diversity": "over the seeds of a prompt",
}
"""What can be asked for; `distance` is always measured."""


def chosen(measures: Sequence[str], skip: Sequence[str]) -> list[str]:
    """Names in their order. Raises `SettingError` for an unknown one, and for leaving `distance` out."""
    for name in (*measures, *skip):
        if name not in MEASURES:
            raise SettingError(f"measure {name!r} is not known: {', '.join(MEASURES)} are.")
    if "distance" in skip:
        raise SettingError("skip=distance: everything is held against the distance between the two pictures. Leave it in.")
    wanted = {"distance", *(measures or MEASURES)} - set(skip)
    return [name for name in MEASURES if name in wanted]
