"""From held-out scores to a threshold that spends a budget (arXiv 2312.10835, section 3.3).

tau is the k-th percentile of the scores of held-out drafts, k the percentage refined; the mean number of steps is
`S + (k / 100) R`: 5 + 0.5 * 20 = 15.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from allaprima.core.errors import SettingError

Scores = Sequence[float] | np.ndarray
"""`(n,)` oracle scores, higher is better."""


def threshold_for(scores: Scores, share: float) -> float:
    """Return the score below which `share` of the drafts fall."""
    values = np.asarray(scores, dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        raise SettingError(f"{len(values)} scores, {np.isfinite(values).sum()} of them numbers: at least 2 are due.")
    # One of the scores itself: interpolating between two that differ in their last bit rounds to the wrong one.
    return float(np.quantile(values, min(max(share, 0.0), 1.0), method="higher"))
