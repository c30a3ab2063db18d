"""`allaprima risk`: judged drafts to a threshold with a guarantee."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def risk(
    judged: Annotated[
        Path, typer.Argument(help="CSV or JSONL of drafts: score, and loss in [0, bound] or student_preferred (0 or 1).")
    ],
    alpha: Annotated[float, typer.Option(help="The loss that must not be exceeded.")] = 0.1,
    delta: Annotated[float, typer.Option(help="Share of calibrations that may break the promise.")] = 0.1,
    promise: Annotated[
        str, typer.Option(help="About: accepted (drafts), sure (all drafts), expected (all, mean over calibrations).")
    ] = "accepted",
    bound: Annotated[float, typer.Option(help="The largest loss there is.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find a threshold that promises how much accepted drafts lose, from drafts that were judged."""
    from allaprima.experiments.risk import risk_command

    risk_command(judged, alpha, delta, promise, bound, as_json)
