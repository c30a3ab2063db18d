"""`allaprima distill`: a recipe to a student, its card and its page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def distill(
    method: Annotated[str | None, typer.Argument(help="One of --list; may also be in the recipe.")] = None,
    changes: Annotated[
        list[str] | None, typer.Argument(help="key=value on top of the recipe: loop.learning_rate=1e-4, options.w=[1,8].")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="YAML: method, teacher, data, options, loop.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the methods and their options, and stop.")] = False,
    out: Annotated[Path, typer.Option(help="Training, then student, card and page; a stopped run goes on.")] = Path(
        "out/student"
    ),
) -> None:
    """Make a student from a teacher: train, resume, and leave a card that generate paints with."""
    from rich.console import Console

    from allaprima.experiments.distill import distill_command, list_methods

    if list_:
        list_methods(Console())
        return
    given = list(changes or [])
    if method is not None and "=" in method:
        method, given = None, [method, *given]
    distill_command(method, recipe, given, out)
