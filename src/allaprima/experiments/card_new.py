"""A new card for two models, with every guess and its reason."""

from __future__ import annotations

from pathlib import Path

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from allaprima.core.errors import RunFolderError
from allaprima.models.cards.card import load_card
from allaprima.models.loading.infer_card import infer_card


def new_card_command(student: str, teacher: str, oracle: str | None, out: Path) -> None:
    """Write OUT/card.yaml. Raises `RunFolderError` where there is one, `ModelError` for models that are no pair."""
    path = out / "card.yaml"
    if path.exists():
        raise RunFolderError(f"{path} exists: choose another --out, or remove it.")
    raw, said = infer_card(student, teacher, oracle, out.resolve().name, Path.cwd())
    console = Console(highlight=False)
    table = Table("what", "guess", "why")
    for row in said.rows:
        table.add_row(*map(escape, row))
    console.print(table)
    reasons = "".join(f"# {what}: {value} ({why})\n" for what, value, why in said.rows)
    try:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(reasons + yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    except OSError as e:
        raise RunFolderError(f"{path} cannot be written: {e.strerror}. Choose another --out.") from e
    load_card(path)
    console.print(
        f"{escape(str(path))}: mend what is wrong, then `allaprima card show {escape(str(out))}` and"
        f" `allaprima calibrate --card {escape(str(out))} --prompts-file YOURS --budget 15`."
    )
