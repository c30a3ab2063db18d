"""`allaprima frontier`: methods, budgets and seeds to quality against cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from allaprima.cli.options import Card, numbers, options_of


def frontier(
    card: Card = "emoji",
    prompts_file: Annotated[str | None, typer.Option(help="Prompts; default: the card's concepts and styles.")] = None,
    prompts: Annotated[int, typer.Option(help="How many prompts.")] = 1000,
    seeds: Annotated[int, typer.Option(help="Pictures a prompt and method.")] = 3,
    budgets: Annotated[str, typer.Option(help="Mean steps a picture for cascades, comma-separated.")] = "5,8,10,12,15,20",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer methods: a first look.")] = False,
    reference: Annotated[
        Path | None, typer.Option(help="Safetensors with `features` of real pictures, for the Frechet distance.")
    ] = None,
    usual_guidance: Annotated[
        float | None, typer.Option(help="The teacher's guidance scale in the baselines; default: the card's.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder; a stopped run goes on where it was.")] = Path("out/frontier"),
) -> None:
    """Draw quality against cost: student, teacher, refine all, every policy, and what no policy can reach."""
    from allaprima.experiments.frontier_report import FrontierOptions, frontier_command

    values = numbers("budgets", budgets, "8,10,15")
    frontier_command(options_of(FrontierOptions, locals(), budgets=values))
