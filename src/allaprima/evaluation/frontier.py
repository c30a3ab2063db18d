"""Quality against cost: points of many methods at many budgets, as a table, CSV, a picture and one self-contained page."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from allaprima.core.errors import SettingError
from allaprima.evaluation.intervals import Interval


@dataclass(frozen=True)
class FrontierPoint:
    """One method at one budget."""

    method: str
    budget: float
    """Mean steps asked for."""
    steps: float
    """Mean steps spent."""
    values: Mapping[str, Interval]
    """By measure, with 95 % intervals."""
    bound: bool = False
    """Whether it knows what no method can know (perfect oracle, full reference)."""
    evaluations: float = float("nan")
    """Mean network evaluations spent; a guided step is two."""
    seconds: float = float("nan")
    """Mean seconds spent where it was painted, oracle, text and decoding included."""


@dataclass(frozen=True)
class Measure:
    """What an axis shows."""

    name: str
    title: str
    higher_is_better: bool


def at_cost(points: Sequence[FrontierPoint], measure: str, steps: float) -> float:
    """A method's value at a cost, linear between its points; nan outside them."""
    known = sorted((p.steps, p.values[measure].mean) for p in points if measure in p.values)
    if not known or not known[0][0] - 1e-9 <= steps <= known[-1][0] + 1e-9:
        return float("nan")
    x, y = zip(*known, strict=True)
    return float(np.interp(steps, x, y))


def steps_to_reach(points: Sequence[FrontierPoint], measure: Measure, target: float) -> float:
    """The least cost at which a method's curve is as good as `target`; nan when it never is."""
    sign = 1 if measure.higher_is_better else -1
    known = sorted((p.steps, sign * p.values[measure.name].mean) for p in points if measure.name in p.values)
    goal = sign * target
    for i, (x, y) in enumerate(known):
        if y >= goal:
            if i == 0:
                return x
            x0, y0 = known[i - 1]
            return x0 + (x - x0) * (goal - y0) / (y - y0)
    return float("nan")


def by_method(points: Sequence[FrontierPoint]) -> dict[str, list[FrontierPoint]]:
    """Points grouped, in the order the methods first appear."""
    groups: dict[str, list[FrontierPoint]] = {}
    for p in points:
        groups.setdefault(p.method, []).append(p)
    return groups


def rows_of(points: Sequence[FrontierPoint]) -> list[dict[str, Any]]:
    """Flat rows, one a point."""
    rows: list[dict[str, Any]] = []
    for p in points:
        row: dict[str, Any] = {
            "method": p.method,
            "budget": p.budget,
            "steps": p.steps,
            "evaluations": p.evaluations,
            "seconds": p.seconds,
            "bound": p.bound,
        }
        for name, i in p.values.items():
            row |= {name: i.mean, f"{name}_low": i.low, f"{name}_high": i.high}
        rows.append(row)
    return rows


def markdown(points: Sequence[FrontierPoint], measures: Sequence[Measure]) -> str:
    """A table for people."""
    lines = ["| method | mean steps | " + " | ".join(m.title for m in measures) + " |", "|---" * (len(measures) + 2) + "|"]
    for p in points:
        cells = [_cell(p.values.get(m.name)) for m in measures]
        lines.append(f"| {p.method} | {p.steps:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(i: Interval | None) -> str:
    return "" if i is None else f"{i.mean:.3f} ({i.low:.3f}..{i.high:.3f})"


COST_AXES = {
    "steps": "mean steps a picture",
    "evaluations": "mean network evaluations a picture",
    "seconds": "mean seconds a picture, all included",
}


def draw(points: Sequence[FrontierPoint], measures: Sequence[Measure], title: str, cost: str = "steps") -> bytes:
    """One panel a measure, the cost on a logarithmic axis, bands for intervals, bounds dashed. PNG.

    `cost`: steps, evaluations or seconds.
    """
    if not points:
        raise SettingError("no points: a frontier needs at least one method at one budget.")
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(measures), figsize=(7.5 * len(measures), 6), squeeze=False)
    colours = plt.get_cmap("tab20")
    for axis, m in zip(axes[0], measures, strict=True):
        for k, (name, group) in enumerate(by_method(points).items()):
            known = sorted((p for p in group if m.name in p.values), key=lambda p: getattr(p, cost))
            if not known:
                continue
            x = [getattr(p, cost) for p in known]
            y, low, high = ([getattr(p.values[m.name], f) for p in known] for f in ("mean", "low", "high"))
            style = "--" if known[0].bound else "-"
            axis.plot(x, y, style, marker="o", ms=4, color=colours(k % 20), label=name)
            axis.fill_between(x, low, high, color=colours(k % 20), alpha=0.12, lw=0)
        axis.set_xscale("log")
        if cost == "steps":
            ticks = [2, 3, 5, 8, 10, 15, 20, 25, 32, 50]
            axis.set_xticks(ticks, [str(t) for t in ticks])
            axis.minorticks_off()
        axis.set_xlabel(COST_AXES[cost])
        axis.set_ylabel(m.title + (" (higher is better)" if m.higher_is_better else " (lower is better)"))
        axis.grid(alpha=0.3)
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


def page(
    points: Sequence[FrontierPoint], measures: Sequence[Measure], title: str, png: bytes, about: Mapping[str, Any]
) -> str:
    """A self-contained HTML page: picture, sortable table, protocol. It fetches nothing."""
    head = "".join(f"<th>{html.escape(h)}</th>" for h in ["method", "steps", *[m.title for m in measures]])
    body: list[str] = []
    for p in points:
        cells = "".join(
            f'<td data-v="{p.values[m.name].mean if m.name in p.values else ""}">{_cell(p.values.get(m.name))}</td>'
            for m in measures
        )
        kind = " class=bound" if p.bound else ""
        body.append(f'<tr{kind}><td>{html.escape(p.method)}</td><td data-v="{p.steps}">{p.steps:.2f}</td>{cells}</tr>')
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{html.escape(title)}</h1><img alt='quality against mean steps' src='data:image/png;base64,"
        f"{base64.b64encode(png).decode()}'><p>Bands and brackets: 95 % intervals. Italic rows know what no method can."
        f" Click a heading to sort.</p><table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        f"<h2>What made it</h2><pre>{html.escape(json.dumps(about, indent=1, default=str))}</pre>"
        f"<script>{_SORT}</script></html>"
    )


_STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2em auto;max-width:75em;padding:0 1em;color:#222}img{max-width:100%}"
    "table{border-collapse:collapse}td,th{padding:.3em .8em;border-bottom:1px solid #ddd;text-align:left}"
    "th{cursor:pointer}.bound{font-style:italic;color:#666}pre{background:#f6f6f6;padding:1em;overflow:auto}"
)
_SORT = (
    "document.querySelectorAll('th').forEach((h,i)=>h.onclick=()=>{const b=document.querySelector('tbody');"
    "const up=h.dataset.up=h.dataset.up==='1'?'0':'1';const v=r=>{const c=r.cells[i];const n=parseFloat(c.dataset.v);"
    "return isNaN(n)?c.textContent:n};[...b.rows].sort((x,y)=>(v(x)>v(y)?1:v(x)<v(y)?-1:0)*(up==='1'?1:-1))"
    ".forEach(r=>b.append(r))})"
)


def write(
    folder: Path, points: Sequence[FrontierPoint], measures: Sequence[Measure], title: str, about: Mapping[str, Any],
    drawn: Sequence[Measure] | None = None,
) -> None:  # fmt: skip
    """`frontier.{json,csv,parquet,png,html,md}` in a folder; `drawn` are the measures of the picture (default: all).

    Where seconds are known, `frontier_seconds.png` is the same picture against seconds.
    """
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(points)
    png = draw(points, drawn or measures, title)
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = io.StringIO()
    writer = csv.DictWriter(table, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    (folder / "frontier.csv").write_text(table.getvalue(), encoding="utf-8")
    full = [{name: row.get(name) for name in names} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(full), folder / "frontier.parquet")
    (folder / "frontier.json").write_text(json.dumps({"about": about, "points": rows}, indent=1, default=str) + "\n")
    (folder / "frontier.png").write_bytes(png)
    if timed := [p for p in points if p.seconds > 0]:
        (folder / "frontier_seconds.png").write_bytes(draw(timed, drawn or measures, title, "seconds"))
    (folder / "frontier.html").write_text(page(points, measures, title, png, about), encoding="utf-8")
    (folder / "frontier.md").write_text(f"# {title}\n\n{markdown(points, measures)}\n", encoding="utf-8")
