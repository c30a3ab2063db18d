"""Two sets of pictures against each other, pair by pair: the difference and the win rate, prompts resampled."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from allaprima.core.errors import SettingError
from allaprima.evaluation.intervals import Interval, mean_interval
from allaprima.evaluation.win_rate import WinRate, win_rate


@dataclass(frozen=True)
class Paired:
    """`difference` is A minus B, a mean over prompts; `wins` are A's. `prompts`: how many were resampled."""

    pairs: int
    prompts: int
    difference: Interval
    wins: WinRate


def paired(
    a: Mapping[Hashable, float],
    b: Mapping[Hashable, float],
    prompt_of: Mapping[Hashable, Hashable],
    higher_is_better: bool = True,
) -> Paired:
    """Values by what pairs them; a key that only one side has is passed over, none in common raises `SettingError`."""
    keys = [k for k in a if k in b]
    if not keys:
        raise SettingError("no picture of the one set has a partner in the other: the same prompts and seeds are due.")
    place = {p: i for i, p in enumerate(dict.fromkeys(prompt_of[k] for k in keys))}
    groups = [place[prompt_of[k]] for k in keys]
    x, y = [a[k] for k in keys], [b[k] for k in keys]
    difference = mean_interval([p - q for p, q in zip(x, y, strict=True)], groups)
    return Paired(len(keys), len(place), difference, win_rate(x, y, groups, higher_is_better))
