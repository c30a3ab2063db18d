"""Options that several verbs have, each declared once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, cast

import typer

T = TypeVar("T")
Card = Annotated[str, typer.Option(help="Bundled card by name, or path of a card.yaml.")]
StudentOnly = Annotated[bool, typer.Option("--student-only", help="Accept every draft.")]
TeacherOnly = Annotated[bool, typer.Option("--teacher-only", help="No drafts: the teacher paints everything.")]
Strategy = Annotated[str | None, typer.Option(help="What the teacher does with a poor draft: refine or regenerate.")]
SigmaIs = Annotated[str | None, typer.Option(help="'variance' (the paper's formula) or 'strength' (diffusers).")]
Solver = Annotated[str | None, typer.Option(help="The teacher's solver: ddim, dpm_solver, ...")]
RayAddress = Annotated[
    str | None, typer.Option(help="Of a Ray cluster that runs, or auto; default: one is started here, for this run.")
]
StudentSteps = Annotated[int | None, typer.Option(help="Student steps.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale of both models.")]
NegativePrompt = Annotated[str, typer.Option(help="What not to paint.")]
Prompt2 = Annotated[str, typer.Option("--prompt-2", help="Prompt of the second text encoder (sdxl, sd3, flux).")]
NegativePrompt2 = Annotated[str, typer.Option("--negative-prompt-2", help="What not to paint, for the second text encoder.")]
Prompt3 = Annotated[str, typer.Option("--prompt-3", help="Prompt of the third text encoder (sd3 with T5).")]
NegativePrompt3 = Annotated[str, typer.Option("--negative-prompt-3", help="What not to paint, for the third text encoder.")]
ClipSkip = Annotated[int | None, typer.Option(help="CLIP's last layers that are left out (sd, sdxl, sd3).")]
GuidanceRescale = Annotated[float | None, typer.Option(help="Guidance rescale of both models, 0..1 (sd, sdxl).")]
Seed = Annotated[int, typer.Option(help="Seed of the first picture; the next ones count up.")]
ImagesPerPrompt = Annotated[int, typer.Option(help="Pictures a prompt.")]
BatchSize = Annotated[int | None, typer.Option(help="Pictures a network call; constant, padded.")]
Nearest = Annotated[bool, typer.Option(help="Move unknown words to the nearest concept the card knows.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")]
Threshold = Annotated[
    float | None, typer.Option(help="Accept drafts that score at least this; default: the card's calibrated one.")
]
Sigma = Annotated[float | None, typer.Option(help="Refining: how much of a draft is repainted.")]
LastTime = Annotated[float | None, typer.Option(help="Where the teacher's last step is evaluated.")]
Backend = Annotated[
    str | None, typer.Option(help="What runs the networks: eager (torch; default), openvino or onnxruntime, for CPUs.")
]
Device = Annotated[str | None, typer.Option(help="cpu (default), cuda, cuda:1, or auto.")]
Dtype = Annotated[str | None, typer.Option(help="float32 (default), bfloat16, float16, or auto.")]
Steps = Annotated[int | None, typer.Option(help="Teacher steps.")]


def options_of(kind: type[T], values: Mapping[str, Any], **others: Any) -> T:
    """Return the options that the work of a verb takes.

    Args:
        kind: A dataclass whose fields bear the names of the verb's parameters.
        values: The verb's `locals()`.
        others: Fields that are made of parameters, in place of these.
    """
    given = {**values, **others}
    return kind(**{f.name: given[f.name] for f in dataclasses.fields(cast(Any, kind))})


def numbers(name: str, text: str, example: str) -> tuple[float, ...]:
    """Return the numbers of a comma list. Raises `SettingError` for anything else."""
    from allaprima.core.errors import SettingError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as e:
        raise SettingError(f"{name}={text!r} are not numbers with commas between: {example} for example.") from e


def names(text: str) -> tuple[str, ...]:
    """Return the names of a comma list, without blanks."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
