"""Rows of edits: which picture, which prompt, how much, and where (CSV or JSON Lines)."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allaprima.core.errors import PromptError


@dataclass(frozen=True)
class EditRow:
    """One edit; what is None is the command's."""

    image: Path
    prompt: str
    strength: float | None = None
    mask: Path | None = None
    seed: int | None = None
    negative_prompt: str | None = None


def read_edits(path: Path) -> Iterator[EditRow]:
    """Rows with `image` and `prompt`, and perhaps `strength`, `mask`, `seed`, `negative_prompt`.

    Pictures are named relative to the file. Raises `PromptError` naming file, line, rule and next step.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise PromptError(f"the edits file {str(path)!r} cannot be read: {e}. Check its name; UTF-8 is due.") from e
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield _row(_json(line, path, number), path, number)
    elif path.suffix.lower() == ".csv":
        rows = csv.DictReader(text.splitlines())
        for raw in rows:
            yield _row(raw, path, rows.line_num)
    else:
        raise PromptError(f"the edits file {str(path)!r} is neither .csv nor .jsonl: rows with image and prompt are due.")


def _json(line: str, path: Path, number: int) -> Mapping[str, Any]:
    try:
        raw: Any = json.loads(line)
    except ValueError as e:
        raise PromptError(f"{path.name}, line {number}: {line[:60]!r} is not JSON ({e}). Mend it.") from e
    if not isinstance(raw, dict):
        raise PromptError(f"{path.name}, line {number}: {line[:60]!r} is no object: image and prompt are due.")
    return raw


def _row(raw: Mapping[str, Any], path: Path, number: int) -> EditRow:
    row = {str(k).strip().lower(): v for k, v in raw.items() if v not in (None, "")}
    for name in ("image", "prompt"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise PromptError(f"{path.name}, line {number}: no {name} in {dict(raw)!r}. Give every row image and prompt.")
    try:
        strength = None if "strength" not in row else float(row["strength"])
        seed = None if "seed" not in row else int(row["seed"])
    except (TypeError, ValueError) as e:
        raise PromptError(f"{path.name}, line {number}: {e}. strength is a number in (0, 1], seed a whole one.") from e
    mask = path.parent / row["mask"] if "mask" in row else None
    return EditRow(path.parent / row["image"], row["prompt"].strip(), strength, mask, seed, row.get("negative_prompt"))
