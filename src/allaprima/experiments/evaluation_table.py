"""The table of an evaluation, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_table(console: Console, report: Mapping[str, Any]) -> None:
    """Print a row a metric, a column a set, then difference and win rate; 95 % intervals in brackets."""
    sets, comparison = report["sets"], report["comparison"]
    table = Table("metric")
    for title in (*(escape(f"{s['name']}\n{_count(s)}") for s in sets), *(["difference", "win rate"] if comparison else [])):
        table.add_column(title, overflow="fold")
    for name, first in sets[0]["metrics"].items():
        better = "higher" if first["protocol"]["higher_is_better"] else "lower"
        cells = [_value(s["metrics"][name]) for s in sets]
        if comparison is not None:
            c = comparison["metrics"][name]
            cells.append(_interval(c["difference"], c["interval"], "+.4g"))
            w = c["win_rate"]
            cells.append("" if w is None else _interval(w["value"], w["interval"], ".3f"))
        table.add_row(f"{escape(first['name'])}\n[dim]{better} is better[/]", *cells)
    console.print(table)
    if comparison is not None:
        lost = sum(comparison["without_partner"])
        said = f"; {lost} pictures have no partner" if lost else ""
        console.print(f"{comparison['pairs']} pairs by {comparison['paired_by']}{said}")


def _count(s: Mapping[str, Any]) -> str:
    prompts = "" if s["prompts"] is None else f", {s['prompts']} prompts"
    return f"{s['pictures']} pictures{prompts}"


def _value(m: Mapping[str, Any]) -> str:
    more = "".join(f"\n{k} {v:.4g}" for k, v in m["more"].items() if v != m["value"])
    kinds = "".join(f"\n{k} {_interval(v['value'], v['interval'], '.3f')}" for k, v in m["kinds"].items())
    return _interval(m["value"], m["interval"], ".4g") + more + kinds


def _interval(value: float, ends: list[float] | None, form: str) -> str:
    return f"{value:{form}}" + ("" if ends is None else f"\n({ends[0]:{form}}..{ends[1]:{form}})")
