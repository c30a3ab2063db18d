"""`allaprima cards`, `card show` and `card new`: what cards there are, what one holds, a card for two models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

card_app = typer.Typer(no_args_is_help=True, help="Look at one card, or write one for two models.")

DType = Annotated[str, typer.Option(help="Of the memory estimate: float32 (what is painted in today), bfloat16, float16.")]


def cards(dtype: DType = "float32") -> None:
    """List the cards that come with allaprima: models, steps, licences, what is here, size."""
    from allaprima.experiments.card_table import cards_command

    cards_command(dtype)


@card_app.command(epilog="Example: allaprima card show sdxl-lcm --dtype bfloat16")
def show(
    card: Annotated[str, typer.Argument(help="Bundled card by name, or path of a card.yaml.")],
    dtype: DType = "float32",
    activations: Annotated[
        bool, typer.Option(help="Estimate activations too: a few seconds more, and nothing is loaded.")
    ] = True,
) -> None:
    """Explain a card: parts, licences, what must be fetched, memory."""
    from allaprima.experiments.card_table import show_card_command

    show_card_command(card, dtype, activations)


@card_app.command(epilog="Example: allaprima card new --student models/mine-lcm --teacher models/mine --out cards/mine")
def new(
    student: Annotated[str, typer.Option(help="Folder in diffusers' format, hub id, a network's folder, or a LoRA file.")],
    teacher: Annotated[str, typer.Option(help="Folder in diffusers' format, or hub id.")],
    out: Annotated[Path, typer.Option(help="Folder for card.yaml; its name is the card's.")],
    oracle: Annotated[str | None, typer.Option(help="KIND=SOURCE; default pickscore=yuvalkirstain/PickScore_v1.")] = None,
) -> None:
    """Write a card for two models: everything is read off their files, and each guess says why."""
    from allaprima.experiments.card_new import new_card_command

    new_card_command(student, teacher, oracle, out)
