"""`allaprima generate`: prompts to a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from allaprima.cli.options import (
    Backend,
    BatchSize,
    Card,
    ClipSkip,
    Device,
    Dtype,
    Guidance,
    GuidanceRescale,
    ImagesPerPrompt,
    Nearest,
    NegativePrompt,
    NegativePrompt2,
    NegativePrompt3,
    Prompt2,
    Prompt3,
    RayAddress,
    Resume,
    Seed,
    SigmaIs,
    Solver,
    Strategy,
    StudentOnly,
    StudentSteps,
    TeacherOnly,
    options_of,
)


# Long: the signature has a line for each option.
def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts; quote each.")] = None,
    prompts_file: Annotated[str | None, typer.Option(help="Text, CSV or JSONL with prompts; '-' reads stdin.")] = None,
    demo: Annotated[bool, typer.Option(help="Paint the card's own 24 demonstration prompts.")] = False,
    card: Card = "emoji",
    out: Annotated[Path, typer.Option(help="Run folder: images/, drafts/, results.jsonl, sheet.png.")] = Path("out"),
    student_only: StudentOnly = False,
    teacher_only: TeacherOnly = False,
    strategy: Strategy = None,
    budget: Annotated[
        float | None, typer.Option(help="Mean cost a picture, in the unit (usually steps) of the card's calibration.")
    ] = None,
    steer: Annotated[
        bool, typer.Option("--steer", help="Correct the threshold as pictures are painted: the mean cost meets the budget.")
    ] = False,
    threshold: Annotated[float | None, typer.Option(help="Accept drafts that score at least this.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Artifact of calibrate, with its settings, in place of the card's own.")
    ] = None,
    sigma: Annotated[float | None, typer.Option(help="Rollback depth in (0, 1): how much of a draft is repainted.")] = None,
    sigma_is: SigmaIs = None,
    solver: Solver = None,
    steps: Annotated[int | None, typer.Option(help="Teacher steps; N means N network steps, whatever sigma.")] = None,
    last_time: Annotated[
        float | None, typer.Option(help="Where the teacher's last step is evaluated; default: the card's for its solver.")
    ] = None,
    student_steps: StudentSteps = None,
    guidance: Guidance = None,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Times LOW HIGH between which the teacher's guidance is full; 0 1000 is always."),
    ] = None,
    guidance_outside: Annotated[
        float | None, typer.Option(help="The teacher's guidance scale outside that interval; 1 is none, and half the work.")
    ] = None,
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
