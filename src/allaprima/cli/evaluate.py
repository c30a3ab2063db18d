"""`allaprima evaluate`: a folder of images, or prompts, to metrics with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from allaprima.cli.generate import generate
from allaprima.cli.options import options_of


def evaluate(
    pictures: Annotated[
        Path | None, typer.Argument(help="Folder of PNG, JPEG or WebP; run folder of generate; or its results.jsonl.")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Comma list: frechet, kernel, precision_recall (need --reference); clip_score (--clip), judge, retrieval,"
            " oracle_score (--card), composition (--card scenes; or --detector, --composition-prompts), diversity (prompts);"
            " preservation, dreamsim, lpips (--reference, pair by pair)."
        ),
    ] = None,
    which: Annotated[str, typer.Option(help="Of a run: final, draft, or both (and finals against drafts).")] = "final",
    reference: Annotated[
        Path | None, typer.Option(help="Folder or run of real pictures, or .safetensors with their 'features'.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Another folder or run: differences and win rate, pair by pair.")
    ] = None,
    features: Annotated[
        str, typer.Option(help="efficientnet-lite0, a transformers vision folder, or Inception .safetensors.")
    ] = "efficientnet-lite0",
    clip: Annotated[Path | None, typer.Option(help="Folder of a CLIP model, for clip_score.")] = None,
    detector: Annotated[
        Path | None, typer.Option(help="Folder of an OWLv2 model that finds objects, for composition.")
    ] = None,
    composition_prompts: Annotated[
        Path | None, typer.Option(help="What prompts ask for, as GenEval's evaluation_metadata.jsonl, for composition.")
    ] = None,
    card: Annotated[str | None, typer.Option(help="Card of the pictures; default: what the run says.")] = None,
    prompts_file: Annotated[
        str | None,
        typer.Option(help="A prompt a picture, in the order of sorted names; without PICTURES: paint these into --out."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Painting: seed of the first picture.")] = None,
    images_per_prompt: Annotated[int | None, typer.Option(help="Painting: pictures a prompt.")] = None,
    budget: Annotated[float | None, typer.Option(help="Painting: mean steps a picture.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Painting: accept drafts that score at least this.")] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures that are measured at a time.")] = 32,
    subset_size: Annotated[
        int | None, typer.Option(help="Kernel distance: pictures a subset; default 1000, or as many as there are.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Where features are kept; default $XDG_CACHE_HOME/allaprima.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The report; default evaluation.json. Painting: the run folder that gets it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report on stdout as well.")] = False,
) -> None:
    """Measure pictures: quality, fit to prompts, diversity, with intervals; alone or against others."""
    from allaprima.experiments.evaluate import EvaluateOptions, evaluate_command

    def generate_images(folder: Path) -> None:
        # The same command goes on with a run that was stopped.
        generate(
            prompts_file=prompts_file, card=card or "emoji", out=folder, budget=budget, threshold=threshold,
            seed=seed or 0, images_per_prompt=1 if images_per_prompt is None else images_per_prompt, resume=True,
        )  # fmt: skip

    evaluate_command(options_of(EvaluateOptions, locals()), generate_images)
