"""`allaprima plan`: a demand and kinds of hardware to machines, threshold, cost and latency."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plan(
    file: Annotated[Path, typer.Argument(help="YAML of demand, hardware and frontier (docs/planning.md).")],
    pictures_a_second: Annotated[float | None, typer.Option(help="Mean rate of arrivals.")] = None,
    pictures_a_day: Annotated[float | None, typer.Option(help="Instead of a rate a second.")] = None,
    burstiness: Annotated[
        float | None, typer.Option(help="Squared variation of the times between arrivals; 1 is Poisson.")
    ] = None,
    p95: Annotated[float | None, typer.Option(help="Seconds that 95 of 100 pictures may take at most.")] = None,
    quality: Annotated[float | None, typer.Option(help="The cheapest fleet at least so good.")] = None,
    cost_at_most: Annotated[float | None, typer.Option(help="Instead: the best fleet for so much an hour.")] = None,
    layout: Annotated[
        str | None, typer.Option(help="apart (pools of their own), together (every machine does all), or either.")
    ] = None,
    simulate: Annotated[int, typer.Option(help="Pictures to check the plan with; 0: formulas alone.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the simulation.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="PNG: latency and cost against the threshold.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how many machines a demand needs, which threshold, and what it costs against the teacher alone."""
    from allaprima.experiments.plan import plan_command

    changes = {
        "pictures_a_second": pictures_a_second, "pictures_a_day": pictures_a_day, "burstiness": burstiness, "p95": p95,
        "quality": quality, "cost_at_most": cost_at_most, "layout": layout,
    }  # fmt: skip
    plan_command(file, changes, simulate, seed, plot, as_json)
