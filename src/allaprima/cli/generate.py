"""`allaprima generate`: prompts to a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from allaprima.cli.options import (
    Backend,
    BatchSize,
    Card,
    Device,
    Dtype,
    RayAddress,
    StudentSteps,
    options_of,
)

BEYOND_IMAGES = (
    "prompts_file", "demo", "budget", "steer", "calibration", "guidance_interval", "guidance_outside", "max_drafts",
    "max_teacher_tries", "noise", "engine",
    "ray_address", "workers", "backend", "device", "teacher_device", "dtype", "lazy_teacher", "offload",
)  # fmt: skip
"""Options that verbs which condition on images don't have."""


# Long: the signature has a line for each option.
def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts; quote each.")] = None,
    prompts_file: Annotated[str | None, typer.Option(help="Text, CSV or JSONL with prompts; '-' reads stdin.")] = None,
    demo: Annotated[bool, typer.Option(help="Paint the card's own 24 demonstration prompts.")] = False,
    card: Card = "emoji",
    out: Annotated[Path, typer.Option(help="Run folder: images/, drafts/, results.jsonl, sheet.png.")] = Path("out"),
    student_only: Annotated[bool, typer.Option("--student-only", help="Accept every draft.")] = False,
    teacher_only: Annotated[bool, typer.Option("--teacher-only", help="No drafts: the teacher paints everything.")] = False,
    strategy: Annotated[
        str | None, typer.Option(help="What the teacher does with a poor draft: refine or regenerate.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Mean cost a picture, in the unit (usually steps) of the card's calibration.")
    ] = None,
    steer: Annotated[
        bool, typer.Option("--steer", help="Correct the threshold as pictures are painted: the mean cost meets the budget.")
    ] = False,
    threshold: Annotated[float | None, typer.Option(help="Accept drafts that score at least this.")] = None,
    max_drafts: Annotated[
        int | None, typer.Option(help="Drafts at most: below the threshold another is generated, the best is kept.")
    ] = None,
    max_teacher_tries: Annotated[
        int | None, typer.Option(help="Tries of the teacher at most: below the threshold it tries again; 0: never asked.")
    ] = None,
    noise: Annotated[
        str | None, typer.Option(help="Where the teacher begins when it regenerates: same (as the draft's) or fresh.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Artifact of calibrate, with its settings, in place of the card's own.")
    ] = None,
    sigma: Annotated[float | None, typer.Option(help="Rollback depth in (0, 1): how much of a draft is repainted.")] = None,
    sigma_is: Annotated[str | None, typer.Option(help="'variance' (the paper's formula) or 'strength' (diffusers).")] = None,
    solver: Annotated[str | None, typer.Option(help="The teacher's solver: ddim, dpm_solver, ...")] = None,
    steps: Annotated[int | None, typer.Option(help="Teacher steps; N means N network steps, whatever sigma.")] = None,
    last_time: Annotated[
        float | None, typer.Option(help="Where the teacher's last step is evaluated; default: the card's for its solver.")
    ] = None,
    student_steps: StudentSteps = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale of both models.")] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Times LOW HIGH between which the teacher's guidance is full; 0 1000 is always."),
    ] = None,
    guidance_outside: Annotated[
        float | None, typer.Option(help="The teacher's guidance scale outside that interval; 1 is none, and half the work.")
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="What not to paint.")] = "",
    prompt_2: Annotated[str, typer.Option("--prompt-2", help="Prompt of the second text encoder (sdxl, sd3, flux).")] = "",
    negative_prompt_2: Annotated[
        str, typer.Option("--negative-prompt-2", help="What not to paint, for the second text encoder.")
    ] = "",
    prompt_3: Annotated[str, typer.Option("--prompt-3", help="Prompt of the third text encoder (sd3 with T5).")] = "",
    negative_prompt_3: Annotated[
        str, typer.Option("--negative-prompt-3", help="What not to paint, for the third text encoder.")
    ] = "",
    clip_skip: Annotated[int | None, typer.Option(help="CLIP's last layers that are left out (sd, sdxl, sd3).")] = None,
    guidance_rescale: Annotated[float | None, typer.Option(help="Guidance rescale of both models, 0..1 (sd, sdxl).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first picture; the next ones count up.")] = 0,
    images_per_prompt: Annotated[int, typer.Option(help="Pictures a prompt.")] = 1,
    batch_size: BatchSize = None,
    nearest: Annotated[bool, typer.Option(help="Move unknown words to the nearest concept the card knows.")] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    engine: Annotated[
        str,
        typer.Option(help="process (here), or ray: workers of a Ray cluster, for very many prompts (docs/serving.md)."),
    ] = "process",
    ray_address: RayAddress = None,
    workers: Annotated[int, typer.Option(help="With --engine ray: how many load the models and paint.")] = 2,
    backend: Backend = None,
    device: Device = None,
    teacher_device: Annotated[
        str | None, typer.Option(help="The teacher's network, when it is to be elsewhere; default: on --device.")
    ] = None,
    dtype: Dtype = None,
    lazy_teacher: Annotated[
        bool, typer.Option("--lazy-teacher", help="Read the teacher's network when the first draft falls short.")
    ] = False,
    offload: Annotated[
        str | None, typer.Option(help="With a GPU: model (one network at a time is there) or sequential (one layer).")
    ] = None,
) -> None:
    """Paint prompts: student, oracle, and teacher where it is needed."""
    from allaprima.core.errors import SettingError
    from allaprima.experiments.generate import GenerateOptions, generate_command
    from allaprima.models.placement.device_config import DeviceConfig

    device_config = DeviceConfig.of(
        backend=backend, device=device, teacher_device=teacher_device, dtype=dtype, lazy_teacher=lazy_teacher,
        offload=offload,
    )  # fmt: skip
    options = options_of(GenerateOptions, locals(), device_config=device_config)
    if engine == "ray":
        from allaprima.experiments.generate_ray import generate_on_ray

        generate_on_ray(options)
    elif engine == "process":
        generate_command(options)
    else:
        raise SettingError(f"engine={engine!r} is not known: process (here), or ray (workers of a Ray cluster).")
