"""Planning of a fleet: a demand and kinds of hardware to machines, threshold, cost and latency."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from allaprima.core.errors import SettingError
from allaprima.fleet.plan_file import Task, read_plan
from allaprima.fleet.planner import FleetPlan, Infeasible, Planner, best_of
from allaprima.fleet.workload import LAYOUTS


@dataclass(frozen=True)
class PlanningResult:
    """What was found."""

    chosen: FleetPlan
    plans: tuple[FleetPlan, ...]
    refused: tuple[Infeasible, ...]
    baseline: FleetPlan | Infeasible


def plan_command(
    file: Path, changes: Mapping[str, Any], simulate: int, seed: int, plot: Path | None, as_json: bool
) -> None:  # fmt: skip
    """Read, plan, simulate, print.

    Args:
        file: The plan file.
        changes: Fields of the file that options stand in place of; None is the file's own.
        simulate: Images to check the plan with; 0: none.
        seed: Of the simulation.
        plot: Where to draw latency and cost.
        as_json: Print JSON in place of tables.
    """
    if simulate and simulate < 1000:
        raise SettingError(f"simulate={simulate!r} pictures are too few for a 95th percentile: 1000 or more, or 0 for none.")
    task = read_plan(file, changes)
    found = planned(task, simulate, seed)
    if plot is not None:
        from allaprima.fleet.plan_plot import draw

        baseline = found.baseline if isinstance(found.baseline, FleetPlan) else None
        plot.write_bytes(draw(found.plans, found.chosen, baseline, task.demand.p95))
    if as_json:
        print(json.dumps(as_dict(task, found), indent=1))
        return
    console = Console(highlight=False)
    _print(console if console.is_terminal else Console(highlight=False, width=150), task, found)
    if plot is not None:
        print(f"look at {plot}")


def planned(task: Task, count: int, seed: int) -> PlanningResult:
    """Every threshold in every layout by the formulas; the chosen one and the teacher-only fleet simulated as well."""
    planner = Planner(task.demand, task.kinds)
    made = [planner.plan(LAYOUTS[name], choice) for name in task.layouts for choice in task.choices]
    plans = [p for p in made if isinstance(p, FleetPlan)]
    refused = [p for p in made if isinstance(p, Infeasible)]
    best = best_of(plans, task.quality, task.cost_at_most)
    if best is None:
        raise SettingError(_nothing(task, plans, refused))
    only = LAYOUTS["teacher-only"]
    if not count:
        return PlanningResult(best, tuple(plans), tuple(refused), planner.plan(only, task.teacher_only))
    settled = planner.settle(best.layout, best.choice, count, seed)
    assert isinstance(settled, FleetPlan)
    return PlanningResult(settled, tuple(plans), tuple(refused), planner.settle(only, task.teacher_only, count, seed))


def _nothing(task: Task, plans: Sequence[FleetPlan], refused: Sequence[Infeasible]) -> str:
    if task.cost_at_most is not None and plans:
        cheapest = min(plans, key=lambda p: p.cost)
        return (
            f"cost_at_most={task.cost_at_most!r} an hour buys no fleet: the cheapest costs {cheapest.cost:.4g}, at threshold"
            f" {cheapest.choice.threshold:.4g}. Nearest: cost_at_most: {cheapest.cost:.6g}."
        )
    good = [r for r in refused if task.quality is None or r.choice.quality >= task.quality]
    # The most hopeful first: what lacks machines is nearer than what lacks time, and less of the teacher needs less.
    nearest = min(good, key=lambda r: (r.limit == "latency", r.choice.share))
    return nearest.reason


def as_dict(task: Task, found: PlanningResult) -> dict[str, Any]:
    """For `--json`; what isn't known is null."""
    baseline = found.baseline
    return {
        "demand": {
            "pictures_a_second": task.demand.rate, "burstiness": task.demand.burstiness, "p95": task.demand.p95,
            "student_steps": task.demand.student_steps, "teacher_steps": task.demand.teacher_steps,
            "teacher_only_steps": task.demand.teacher_only_steps, "occupied_at_most": task.demand.occupied_at_most,
        },
        "hardware": {k.name: {"cost": k.cost, "at_most": k.at_most, "measured": k.measured} for k in task.kinds},
        "chosen": _plan_dict(found.chosen),
        "teacher_only": _plan_dict(baseline) if isinstance(baseline, FleetPlan) else {"infeasible": baseline.reason},
        "saving": _saving(found),
        "thresholds": [_plan_dict(p) for p in found.plans],
        "infeasible": [
            {"layout": r.layout.name, "threshold": _known(r.choice.threshold), "share": r.choice.share, "limit": r.limit,
             "words": r.reason}
            for r in found.refused
        ],
    }  # fmt: skip


def _plan_dict(p: FleetPlan) -> dict[str, Any]:
    seen = p.seen
    return {
        "layout": p.layout.name, "threshold": _known(p.choice.threshold), "share": p.choice.share,
        "quality": _known(p.choice.quality), "cost_an_hour": p.cost, "cost_a_thousand_pictures": 1000 * p.cost_a_picture,
        "p95_formula": p.p95,
        "simulated": None if seen is None else {
            "pictures": len(seen.latencies), "p50": seen.quantile(0.5), "p95": seen.p95, "p99": seen.quantile(0.99),
            "busy": dict(seen.busy), "fill": dict(seen.fill), "present": seen.present,
        },
        "pools": [
            {"pool": a.pool, "kind": a.kind.name, "machines": a.machines, "weight": a.weight, "cost_an_hour": a.cost,
             "seconds": a.seconds, "occupied": a.occupied, "busy": a.busy}
            for a in p.assigned
        ],
    }  # fmt: skip


def _known(x: float) -> float | None:
    return x if math.isfinite(x) else None


def _saving(found: PlanningResult) -> float | None:
    """Share of the teacher-only fleet's cost."""
    return 1 - found.chosen.cost / found.baseline.cost if isinstance(found.baseline, FleetPlan) else None


def _print(console: Console, task: Task, found: PlanningResult) -> None:
    d, chosen = task.demand, found.chosen
    console.print(
        f"{d.rate:.6g} pictures a second ({d.rate * 86400:.4g} a day), 95 % within {d.p95:g} s, burstiness {d.burstiness:g};"
        f" {d.student_steps} student steps, {d.teacher_steps} of the teacher, {d.teacher_only_steps} without a student"
    )
    for k in task.kinds:
        times = ", ".join(f"{s} {1000 * k.mean(s):.4g}" for s in k.seconds)
        how = f"measured, {len(k.seconds['student'])} calls" if k.measured else "given, not measured"
        limit = "" if k.at_most is None else f", at most {k.at_most}"
        console.print(f"{k.name}: {k.cost:g} an hour{limit}; ms a batch of {k.batch} ({how}): {times}")
    table = Table("threshold", "escalated", "quality", "layout", "machines", "p95, s", "an hour", "a thousand pictures")
    for p in sorted(found.plans, key=lambda p: (p.choice.share, p.layout.name)):
        _row(table, p, "", p.choice == chosen.choice and p.layout == chosen.layout)
    table.add_section()
    _row(table, chosen, "chosen: ", True)
    if isinstance(found.baseline, FleetPlan):
        _row(table, found.baseline, "", False)
    console.print(table)
    for r in found.refused:
        console.print(f"no fleet: {r.reason}", soft_wrap=True)
    _print_pools(console, chosen)
    _print_verdict(console, task, found)


def _row(table: Table, p: FleetPlan, before: str, bold: bool) -> None:
    pools = "; ".join(f"{a.pool} {a.machines} {a.kind.name}" for a in p.assigned if a.machines)
    p95 = f"{p.p95:.2f}" + ("" if p.seen is None else f" (simulated {p.seen.p95:.2f})")
    table.add_row(
        before + (f"{p.choice.threshold:.4g}" if math.isfinite(p.choice.threshold) else "none"), f"{p.choice.share:.1%}",
        "" if math.isnan(p.choice.quality) else f"{p.choice.quality:.6g}", p.layout.name, pools, p95, f"{p.cost:,.2f}",
        f"{1000 * p.cost_a_picture:.4g}", style="bold" if bold else None,
    )  # fmt: skip


def _print_pools(console: Console, p: FleetPlan) -> None:
    table = Table(
        "pool", "kind", "machines", "of its pictures", "places taken", "busy", "busy, simulated", "slow pictures, s"
    )
    for a in p.assigned:
        seen = "" if p.seen is None else f"{p.seen.busy[a.pool]:.0%}"
        table.add_row(
            a.pool, a.kind.name, str(a.machines), f"{a.weight:.0%}", f"{a.occupied:.0%}", f"{a.busy:.0%}", seen,
            f"{a.seconds:.2f}",
        )  # fmt: skip
    console.print(table)


def _print_verdict(console: Console, task: Task, found: PlanningResult) -> None:
    chosen, seen = found.chosen, found.chosen.seen
    if seen is not None and seen.p95 > task.demand.p95:
        console.print(
            f"[yellow]The simulation's 95th percentile, {seen.p95:.2f} s, is above the objective: leave more places free"
            " (occupied_at_most), or ask for less.[/]"
        )
    if isinstance(found.baseline, Infeasible):
        console.print(f"The teacher alone: {found.baseline.reason}", soft_wrap=True)
        return
    only, saving = found.baseline, _saving(found) or 0.0
    day = 24 * (only.cost - chosen.cost)
    quality = ""
    if not math.isnan(chosen.choice.quality) and not math.isnan(only.choice.quality):
        quality = f" Quality {chosen.choice.quality:.6g} against {only.choice.quality:.6g}."
    console.print(
        f"The cascade costs {chosen.cost:,.2f} an hour with {chosen.machines} machines, the teacher alone {only.cost:,.2f}"
        f" with {only.machines}: a saving of {saving:.0%}, {day:,.0f} a day.{quality}", soft_wrap=True,
    )  # fmt: skip
