"""Bands of a scale by quantiles: the nearest fifth of the pairs, the next, ... (arXiv 2312.10835, figure 4c)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from allaprima.core.errors import SettingError

EDGES = (0.0, 20.0, 40.0, 60.0, 80.0, 100.0)
"""Percent. The paper shows the first, the third and the fifth of these bands."""


def band_of(values: Sequence[float], edges: Sequence[float] = EDGES) -> np.ndarray:
    """`(N,)` numbers of bands: a value is in band b when `edges[b] <= r < edges[b + 1]`, r the percentage of smaller values.

    Equal values are in one band, the lowest that one of them reaches, so that with ties bands may differ in size or be
    empty. Raises `SettingError` for edges that don't rise from 0 to 100, no values, or values that are no numbers.
    """
    v, e = np.asarray(values, dtype=np.float64), np.asarray(edges, dtype=np.float64)
    if len(e) < 2 or e[0] != 0 or e[-1] != 100 or not (np.diff(e) > 0).all():
        raise SettingError(f"edges={list(edges)!r}: percentages that rise from 0 to 100 are due, for example 0,20,...,100.")
    if v.ndim != 1 or not len(v) or np.isnan(v).any():
        raise SettingError(f"{int(np.isnan(v).sum())} of {len(v)} values are no numbers: numbers, at least one, are due.")
    smaller = np.searchsorted(np.sort(v), v, side="left")
    # 20 % of 10 values are 2 although .2 * 10 may be a bit less.
    return np.searchsorted(e * len(v) / 100 - 1e-9, smaller, side="right") - 1


def band_names(edges: Sequence[float] = EDGES) -> list[str]:
    """ "0-20 %", ..."""
    return [f"{a:g}-{b:g} %" for a, b in zip(edges, edges[1:], strict=False)]
