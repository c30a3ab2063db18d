"""`allaprima edit`: images and new prompts to a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from allaprima.cli.generate import BEYOND_IMAGES, generate
from allaprima.cli.options import (
    LastTime,
    Sigma,
    Threshold,
    like,
    numbers,
    options_of,
)


@like(generate, BEYOND_IMAGES)
def edit(
    picture: Annotated[Path | None, typer.Argument(help="The picture to edit.")] = None,
    prompts: Annotated[list[str] | None, typer.Argument(help="What it should become; quote each.")] = None,
    edits_file: Annotated[
        Path | None,
        typer.Option(help="Instead: CSV or JSONL of image, prompt, and perhaps strength, mask, seed, negative_prompt."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Only white places are painted anew; the rest is kept to the pixel.")
    ] = None,
    strengths: Annotated[
        str, typer.Option(help="How much may change, in (0, 1), several with commas; default 0.8, with a mask 1.")
    ] = "",
    fit: Annotated[bool, typer.Option("--fit", help="Resize and cut pictures and masks to what the card paints.")] = False,
    *,
    out: Annotated[Path, typer.Option(help="Run folder: images/, drafts/, sources/, results.jsonl, sheet.png.")] = Path(
        "out"
    ),
    teacher_only: Annotated[bool, typer.Option("--teacher-only", help="No drafts: the teacher edits everything.")] = False,
    strategy: Annotated[
        str | None, typer.Option(help="What the teacher does with a poor draft: regenerate (edit anew; default) or refine.")
    ] = None,
    threshold: Threshold = None,
    sigma: Sigma = None,
    steps: Annotated[int | None, typer.Option(help="Teacher steps of a whole picture; an edit takes its share.")] = None,
    last_time: LastTime = None,
    student_steps: Annotated[int | None, typer.Option(help="Student steps; an edit takes them all.")] = None,
    images_per_prompt: Annotated[int, typer.Option(help="Pictures a prompt and strength.")] = 1,
    **shared: Any,
) -> None:
    """Edit pictures: the student first, and the teacher where its draft falls short (SDEdit, inpainting)."""
    from allaprima.experiments.edit import EditOptions, edit_command

    values = numbers("strengths", strengths, "0.4,0.6,0.8") if strengths else ()
    edit_command(options_of(EditOptions, {**locals(), **shared}, strengths=values))
