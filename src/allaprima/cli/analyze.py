"""`allaprima analyze`: a report on where student and teacher of a pair differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from allaprima.cli.options import BatchSize, Card, Steps, StudentSteps, names, options_of


def analyze(
    card: Card = "emoji",
    prompts_file: Annotated[
        str | None, typer.Option(help="Prompts, painted as they are; default: the card's concepts and styles.")
    ] = None,
    prompts: Annotated[int, typer.Option(help="How many prompts; intervals are over prompts.")] = 200,
    seeds: Annotated[int, typer.Option(help="Pairs a prompt; diversity needs 2 or more.")] = 2,
    seed: Annotated[
        int, typer.Option(help="Seed of the first pair; keep it away from the seeds you calibrate with.")
    ] = 7_000_000,
    measures: Annotated[
        str,
        typer.Option(
            help="Comma list; default all: distance (always), lpips, complexity, length, influence, curvature, decisions,"
            " diversity."
        ),
    ] = "",
    skip: Annotated[
        str, typer.Option(help="Comma list of measures to leave out; lpips and influence are the slow ones.")
    ] = "",
    features: Annotated[
        str,
        typer.Option(help="Of the distance: efficientnet-lite0, or a folder of a vision model (DreamSim's, DINOv2, ...)."),
    ] = "efficientnet-lite0",
    icnet: Annotated[
        Path | None, typer.Option(help="ICNet's score as ONNX, for complexity; without it a stand-in, named as such.")
    ] = None,
    tie: Annotated[
        float, typer.Option(help="Pairs whose scores differ by this many standard deviations of the gap or less are ties.")
    ] = 0.25,
    student_steps: StudentSteps = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    out: Annotated[Path, typer.Option(help="Folder of report.html, report.json, pairs.csv; a stopped run goes on.")] = Path(
        "out/analysis"
    ),
) -> None:
    """Look inside a pair: where student and teacher differ, who wins, and what tells it beforehand (docs/analysis.md)."""
    from allaprima.experiments.analyze import AnalyzeOptions, analyze_command

    analyze_command(options_of(AnalyzeOptions, locals(), measures=names(measures), skip=names(skip)))
