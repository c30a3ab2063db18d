"""`allaprima calibrate`: scored drafts of held-out prompts to a threshold, or another policy, for a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from allaprima.cli.options import Backend, Card, Device, Dtype, Steps, StudentSteps, options_of


def calibrate(
    budget: Annotated[float | None, typer.Option(help="Mean cost a picture, in --unit; default 15 steps.")] = None,
    target: Annotated[
        float | None, typer.Option(help="Instead of a budget: the mean --metric that finished pictures must reach.")
    ] = None,
    metric: Annotated[
        str, typer.Option(help="What --search and --target look at: oracle, or a bundled card's judge.")
    ] = "oracle",
    search: Annotated[
        bool,
        typer.Option("--search", help="Tune student steps, strategy, sigma, teacher steps and solver for the budget too."),
    ] = False,
    unit: Annotated[str, typer.Option(help="steps, evaluations (a guided step is 2), seconds or money.")] = "steps",
    price_per_hour: Annotated[float | None, typer.Option(help="What this machine costs an hour; for --unit money.")] = None,
    card: Card = "emoji",
    prompts_file: Annotated[
        str | None, typer.Option(help="Held-out prompts; default: the card's concepts and styles.")
    ] = None,
    samples: Annotated[int, typer.Option(help="How many drafts to score.")] = 500,
    seed: Annotated[
        int, typer.Option(help="Seed of the first draft; keep it away from the seeds you paint with.")
    ] = 1_000_000,
    student_steps: StudentSteps = None,
    steps: Steps = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures a network call.")] = None,
    policy: Annotated[
        str,
        typer.Option(
            help="threshold, sequential (several attempts, beside every control), band, recheck, clear_recheck, pre_route,"
            " value or best_of_N (with --drafts N)."
        ),
    ] = "threshold",
    drafts: Annotated[int, typer.Option(help="Attempts of the student to paint, for best_of_N and sequential.")] = 1,
    tolerance: Annotated[float, typer.Option(help="Warn when the mean cost may miss the budget by more than this.")] = 0.03,
    table: Annotated[bool, typer.Option("--table", help="Show what fewer or more prompts would buy.")] = False,
    out: Annotated[Path, typer.Option(help="The artifact to write; a stopped run goes on where it was.")] = Path(
        "calibration.json"
    ),
    backend: Backend = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Score held-out drafts and find the threshold, or another policy, that spends a budget."""
    from allaprima.experiments.calibrate import CalibrateOptions, calibrate_command
    from allaprima.models.placement.device_config import DeviceConfig

    device_config = DeviceConfig.of(backend=backend, device=device, dtype=dtype)
    calibrate_command(options_of(CalibrateOptions, locals(), device_config=device_config))
