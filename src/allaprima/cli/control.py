"""`allaprima control`: images that say where things are, and prompts that say what, to a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from allaprima.cli.options import (
    BatchSize,
    Card,
    ClipSkip,
    Guidance,
    GuidanceRescale,
    ImagesPerPrompt,
    LastTime,
    Nearest,
    NegativePrompt,
    NegativePrompt2,
    NegativePrompt3,
    Prompt2,
    Prompt3,
    Resume,
    Seed,
    Sigma,
    SigmaIs,
    Solver,
    Steps,
    Strategy,
    StudentOnly,
    StudentSteps,
    TeacherOnly,
    Threshold,
    options_of,
)


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
    card: Card = "emoji",
    out: Annotated[Path, typer.Option(help="Run folder: images/, drafts/, sources/, sheet.png.")] = Path("out"),
    student_only: StudentOnly = False,
    teacher_only: TeacherOnly = False,
    strategy: Strategy = None,
    threshold: Threshold = None,
    sigma: Sigma = None,
    sigma_is: SigmaIs = None,
    solver: Solver = None,
    steps: Steps = None,
    last_time: LastTime = None,
    student_steps: StudentSteps = None,
    guidance: Guidance = None,
    negative_prompt: NegativePrompt = "",
    prompt_2: Prompt2 = "",
    negative_prompt_2: NegativePrompt2 = "",
    prompt_3: Prompt3 = "",
    negative_prompt_3: NegativePrompt3 = "",
    clip_skip: ClipSkip = None,
    guidance_rescale: GuidanceRescale = None,
    seed: Seed = 0,
    images_per_prompt: ImagesPerPrompt = 1,
    batch_size: BatchSize = None,
    nearest: Nearest = True,
    resume: Resume = False,
) -> None:
    """Paint what a prompt says where a picture says: ControlNets on student and teacher."""
    from allaprima.experiments.control import ControlOptions, control_command

    several = {"nets": tuple(net or ()), "maps": tuple(map_ or ()), "scales": tuple(scale or ())}
    control_command(options_of(ControlOptions, locals(), **several))
