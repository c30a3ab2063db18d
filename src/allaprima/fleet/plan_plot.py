"""Latency and cost against the threshold, as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

from allaprima.core.errors import SettingError
from allaprima.fleet.planner import FleetPlan


def draw(plans: Sequence[FleetPlan], chosen: FleetPlan, baseline: FleetPlan | None, p95: float) -> bytes:
    """Two panels over the share of drafts that is escalated, thresholds on a second axis. PNG."""
    if not plans:
        raise SettingError("no plans to draw: there is no fleet for any threshold.")
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 1, figsize=(8, 8), sharex=True)
    for name in dict.fromkeys(p.layout.name for p in plans):
        rows = sorted((p for p in plans if p.layout.name == name), key=lambda p: p.choice.share)
        x = [p.choice.share for p in rows]
        axes[0].plot(x, [p.p95 for p in rows], marker="o", label=f"{name}, formulas")
        axes[1].plot(x, [p.cost for p in rows], marker="o", label=name)
    if chosen.seen is not None:
        axes[0].plot(chosen.choice.share, chosen.seen.p95, "k*", ms=12, label="chosen, simulated")
    axes[1].plot(chosen.choice.share, chosen.cost, "k*", ms=12, label="chosen")
    axes[0].axhline(p95, color="grey", ls="--", label="objective")
    if baseline is not None:
        axes[1].axhline(baseline.cost, color="grey", ls=":", label="teacher only")
    axes[0].set_ylabel("95th percentile of latency, s")
    axes[1].set_ylabel("cost an hour")
    axes[1].set_xlabel("share of drafts that is escalated")
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    ticks = sorted({(p.choice.share, p.choice.threshold) for p in plans})
    upper = axes[0].secondary_xaxis("top")
    upper.set_xticks([s for s, _ in ticks], [f"{t:.3g}" for _, t in ticks], fontsize=7, rotation=45)
    upper.set_xlabel("threshold")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()
