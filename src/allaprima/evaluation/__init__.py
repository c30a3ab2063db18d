"""Metrics, one file each, found by name."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

from allaprima.core.errors import SettingError

if TYPE_CHECKING:
    from allaprima.evaluation.metric import Metric

METRICS = {
    "frechet": "frechet:FrechetDistance",
    "kernel": "kernel:KernelDistance",
    "precision_recall": "precision_recall:PrecisionRecall",
    "clip_score": "clip_score:CLIPScore",
    "oracle_score": "oracle_score:OracleScore",
    "retrieval": "retrieval:Retrieval",
    "preservation": "preservation:Preservation",
    "dreamsim": "dreamsim:DreamSimType",
    "lpips": "lpips:LPIPSType",
    "diversity": "diversity:Diversity",
}
"""Name -> `module:class` in this package, imported when asked for."""


def make_metric(name: str, **options: Any) -> Metric:
    """A metric by name; a scorer comes as a metric. Raises `SettingError` with the nearest name for an unknown one."""
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise SettingError(f"metric={name!r} is not known: {', '.join(METRICS)} are.{hint}")
    from allaprima.evaluation.metric import PerImageScorer, PerPicture

    module, cls = METRICS[name].split(":")
    made = getattr(importlib.import_module(f"{__name__}.{module}"), cls)(**options)
    return PerPicture(made) if isinstance(made, PerImageScorer) else made
