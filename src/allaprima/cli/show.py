"""`allaprima show`: what made an image, and the image again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def show(
    picture: Annotated[Path, typer.Argument(help="A PNG painted by allaprima.")],
    repeat: Annotated[bool, typer.Option("--repeat", help="Paint it again and compare, byte for byte.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where to write the repeated picture.")] = None,
    card: Annotated[str | None, typer.Option(help="Where its card is, if the name in the picture isn't enough.")] = None,
    source: Annotated[
        list[Path] | None, typer.Option(help="With --repeat: picture or mask that was edited; may be given again.")
    ] = None,
) -> None:
    """Print what made a picture; with --repeat, make it again."""
    from allaprima.experiments.show import show_command

    show_command(picture, repeat, out, card, source or [])
