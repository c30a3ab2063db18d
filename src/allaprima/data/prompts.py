"""Readers of prompts: text, CSV and JSON Lines, streamed, with the file and line named when a row is bad."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from allaprima.core.errors import PromptError


@dataclass(frozen=True)
class PromptRow:
    """One prompt, with what its row says beside it."""

    prompt: str
    seed: int | None = None
    negative_prompt: str | None = None
    prompt_2: str | None = None
    """For the second text encoder, as a request has it; likewise the others."""
    negative_prompt_2: str | None = None
    prompt_3: str | None = None
    negative_prompt_3: str | None = None


def read_prompts(source: str | Path) -> Iterator[PromptRow]:
    """Prompts of a file, by its ending (`.csv`, `.jsonl`/`.ndjson`, else one a line), or of stdin for `-`.

    Blank lines are passed over. Raises `PromptError` naming file, line, rule and next step.
    """
    if str(source) == "-":
        yield from _lines(sys.stdin, "stdin")
        return
    path = Path(source)
    reader = {".csv": _csv, ".jsonl": _jsonl, ".ndjson": _jsonl}.get(path.suffix.lower(), _lines)
    try:
        with path.open(encoding="utf-8-sig", newline="") as f:
            yield from reader(f, path.name)
    except OSError as e:
        raise PromptError(f"the prompts file {str(path)!r} cannot be read: {e.strerror}. Check its name.") from e
    except UnicodeDecodeError as e:
        raise PromptError(f"{path.name} is not UTF-8 (byte {e.start}): save it as UTF-8.") from e


def _lines(f: Iterable[str], name: str) -> Iterator[PromptRow]:
    return (PromptRow(line.strip()) for line in f if line.strip())


def _row(raw: dict[str, Any], name: str, number: int) -> PromptRow:
    lower = {str(k).strip().lower(): v for k, v in raw.items()}
    prompt, seed = lower.get("prompt"), lower.get("seed")
    if not isinstance(prompt, str) or not prompt.strip():
        raise PromptError(f"{name}, line {number}: no prompt in {raw!r}. Give every row a non-empty 'prompt'.")
    try:
        seed = None if seed in (None, "") else int(seed)
    except (TypeError, ValueError) as e:
        raise PromptError(f"{name}, line {number}: seed={seed!r} is not a whole number. Mend it or leave it empty.") from e
    texts = {f"{negative}prompt{n}": None for negative in ("", "negative_") for n in ("", "_2", "_3")}
    return PromptRow(prompt.strip(), seed, **{name: lower.get(name) or None for name in texts if name != "prompt"})


def _csv(f: TextIO, name: str) -> Iterator[PromptRow]:
    rows = csv.reader(f)
    header = next(rows, None)
    if header is None:
        return
    names = [h.strip().lower() for h in header]
    if "prompt" not in names and len(names) > 1:
        raise PromptError(f"{name}, line 1: the columns are {header}; one of them must be called 'prompt'.")
    if "prompt" not in names:
        yield PromptRow(header[0].strip())
        names = ["prompt"]
    for row in rows:
        if any(cell.strip() for cell in row):
            yield _row(dict(zip(names, row, strict=False)), name, rows.line_num)


def _jsonl(f: Iterable[str], name: str) -> Iterator[PromptRow]:
    for number, line in enumerate(f, 1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
        except json.JSONDecodeError as e:
            raise PromptError(f"{name}, line {number}: not JSON ({e.msg}). One object or string a line is due.") from e
        yield _row(raw if isinstance(raw, dict) else {"prompt": raw}, name, number)
