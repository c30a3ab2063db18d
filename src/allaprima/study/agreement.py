"""Krippendorff's alpha for answers that are names (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence


def nominal_alpha(units: Iterable[Sequence[str]]) -> float:
    """1: all agree; 0: as by chance; nan where nothing can differ. `units`: the answers that each pair got, any number.

    `alpha = 1 - (n - 1) (sum of o_cc' over c != c') / (sum of n_c n_c' over c != c')`, where a unit of m answers adds each
    of its ordered pairs of answers to o with weight 1 / (m - 1), and n are o's sums. Units of one answer say nothing.
    """
    differing, totals = 0.0, Counter[str]()
    for answers in units:
        m = len(answers)
        if m < 2:
            continue
        counts = Counter(answers)
        totals.update(counts)
        differing += (m * m - sum(c * c for c in counts.values())) / (m - 1)
    n = sum(totals.values())
    expected = n * n - sum(c * c for c in totals.values())
    return 1 - (n - 1) * differing / expected if expected else float("nan")
