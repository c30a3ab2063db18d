"""`allaprima control`: images that say where things are, and prompts that say what, to a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from allaprima.cli.generate import BEYOND_IMAGES, generate
from allaprima.cli.options import (
    LastTime,
    Sigma,
    Steps,
    Threshold,
    like,
    options_of,
)


@like(generate, BEYOND_IMAGES)
def control(
    picture: Annotated[Path | None, typer.Argument(help="Where things are: a picture, or the map itself.")] = None,
    prompts: Annotated[list[str] | None, typer.Argument(help="What to paint; quote each.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Map hole: white where the picture is missing.")] = None,
    controls_file: Annotated[
        Path | None, typer.Option(help="Instead: CSV or JSONL of image, prompt, and perhaps mask, seed, negative_prompt.")
    ] = None,
    net: Annotated[
        list[str] | None,
        typer.Option(help="ControlNet: one of the card's by name, or a folder in diffusers' format; may be repeated."),
    ] = None,
    map_: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            help="What each net reads: canny, colours, low-resolution, hole (with --mask); given: the picture itself.",
        ),
    ] = None,
    scale: Annotated[list[float] | None, typer.Option(help="How much each net is heeded; default 1.")] = None,
    condition_weight: Annotated[
        float, typer.Option(help="Of how well a draft heeds its map (0..1), added to the oracle's score; with --threshold.")
    ] = 0.0,
    fit: Annotated[bool, typer.Option("--fit", help="Resize and cut pictures to what the card paints.")] = False,
    *,
    out: Annotated[Path, typer.Option(help="Run folder: images/, drafts/, sources/, sheet.png.")] = Path("out"),
    threshold: Threshold = None,
    sigma: Sigma = None,
    steps: Steps = None,
    last_time: LastTime = None,
    **shared: Any,
) -> None:
    """Paint what a prompt says where a picture says: ControlNets on student and teacher."""
    from allaprima.experiments.control import ControlOptions, control_command

    several = {"nets": tuple(net or ()), "maps": tuple(map_ or ()), "scales": tuple(scale or ())}
    control_command(options_of(ControlOptions, {**locals(), **shared}, **several))
