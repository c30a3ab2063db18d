"""Sets of pictures on disk, read in batches: a folder, or a run's `results.jsonl` with the pictures that it names."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from allaprima.core.errors import PromptError, SettingError
from allaprima.data.images import opaque
from allaprima.data.prompts import read_prompts

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
RESULTS = "results.jsonl"
Which = Literal["final", "draft"]


@dataclass(frozen=True)
class Entry:
    """One picture; `seed` and `prompt` where something says them."""

    path: Path
    prompt: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class PictureSet:
    """Pictures of one size, in a fixed order."""

    name: str
    entries: tuple[Entry, ...]
    left_out: int = 0
    """Rows of the results that have no picture: they failed, or were painted without a draft."""

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def prompts(self) -> list[str] | None:
        """One a picture, or `None` if nothing says them."""
        found = [e.prompt for e in self.entries if e.prompt is not None]
        return found if len(found) == len(self.entries) else None

    @property
    def seeded(self) -> bool:
        """Whether every picture has a prompt and a seed, by which sets can be paired."""
        return all(e.prompt is not None and e.seed is not None for e in self.entries)

    def keys(self, by_seed: bool) -> list[tuple[Any, ...]]:
        """Return what pairs a picture with one of another set: prompt and seed, or the file's name; repeats are counted."""
        seen: Counter[tuple[Any, ...]] = Counter()
        keys: list[tuple[Any, ...]] = []
        for e in self.entries:
            key = (e.prompt, e.seed) if by_seed else (e.path.stem,)
            keys.append((*key, seen[key]))
            seen[key] += 1
        return keys

    def batches(self, size: int) -> Iterator[Tensor]:
        """`(B, 3, H, W)` uint8, B <= size. Raises `SettingError` naming a broken picture, or one of another size."""
        first: tuple[int, ...] | None = None
        for start in range(0, len(self.entries), size):
            part: list[Tensor] = []
            for e in self.entries[start : start + size]:
                picture = read_picture(e.path)
                first = first or tuple(picture.shape)
                if tuple(picture.shape) != first:
                    raise SettingError(
                        f"{e.path} has {picture.shape[2]}x{picture.shape[1]} pixels, {self.entries[0].path.name}"
                        f" {first[2]}x{first[1]}: one size is due. Resize them, or move them to a folder of their own."
                    )
                part.append(picture)
            yield torch.stack(part)


def pixels_sha256(batches: Iterator[Tensor]) -> tuple[str, tuple[int, int]]:
    """SHA-256 over shapes and 8-bit pixels in order, and height and width; at least 1 picture."""
    digest, size = hashlib.sha256(), (0, 0)
    for batch in batches:
        size = (int(batch.shape[2]), int(batch.shape[3]))
        for picture in batch:
            digest.update(f"{tuple(picture.shape)}".encode())
            digest.update(picture.contiguous().numpy().tobytes())
    return digest.hexdigest(), size


def read_picture(path: Path) -> Tensor:
    """`(3, H, W)` uint8. Raises `SettingError` for a broken file, transparent places, or more than 8 bits a channel."""
    try:
        with Image.open(path) as image:
            image.load()
            return torch.from_numpy(np.array(opaque(image, str(path)))).permute(2, 0, 1)
    except SettingError:
        raise
    # Pillow's decoders answer damage with any of these.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as e:
        raise SettingError(f"{path} cannot be read as a picture: {e}. Make it again, or leave it out.") from e


def open_pictures(path: Path, which: Which = "final", prompts_file: str | None = None) -> PictureSet:
    """Return a folder, a run folder, or a run's results file, as a set; no picture is opened yet.

    A folder's prompts come from `prompts_file`, one a picture in the order of sorted names, or from a `results.jsonl`
    inside (then that names the pictures) or beside it. Raises `SettingError` or `PromptError` with the next step.
    """
    folder = path.parent if path.name == RESULTS else path
    inside = folder / RESULTS
    if path.name == RESULTS and not path.is_file():
        raise SettingError(f"{path} is not there: give a folder of pictures, a run folder, or its {RESULTS}.")
    if inside.is_file():
        if prompts_file is not None:
            raise SettingError(f"{inside} has the prompts already: leave out --prompts-file.")
        return _from_results(inside, which)
    if not folder.is_dir():
        raise SettingError(f"{path} is not a folder: give a folder of pictures, a run folder, or its {RESULTS}.")
    if which != "final":
        raise SettingError(
            f"which={which!r}: {path} has no {RESULTS}, and so no drafts. Give a folder of `allaprima generate`."
        )
    found = sorted((p for p in folder.iterdir() if p.suffix.lower() in ENDINGS), key=lambda p: p.name)
    if not found:
        raise SettingError(f"{path} holds no pictures: {', '.join(ENDINGS)} are read. Check the folder's name.")
    entries = [Entry(p) for p in found]
    if prompts_file is not None:
        rows = list(read_prompts(prompts_file))
        if len(rows) != len(found):
            raise PromptError(
                f"{prompts_file} has {len(rows)} prompts for the {len(found)} pictures of {path}: one a picture is due, in"
                " the order of sorted names."
            )
        entries = [replace(e, prompt=r.prompt, seed=r.seed) for e, r in zip(entries, rows, strict=True)]
    elif (folder.parent / RESULTS).is_file():
        entries = _with_rows(entries, folder.parent / RESULTS)
    return PictureSet(str(path), tuple(entries))


def _rows(results: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows with where they are; each is an object with a prompt."""
    try:
        lines = results.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise SettingError(f"{results} cannot be read: {e}. Finish the run with `allaprima generate --resume`.") from e
    for number, line in enumerate(lines, 1):
        where = f"{results}, line {number}"
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except ValueError as e:
            raise SettingError(f"{where}: {line[:60]!r} is not JSON ({e}). Mend it, or finish the run with --resume.") from e
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise SettingError(f"{where}: {line[:60]!r} has no 'prompt': an object with prompt and image is due. Mend it.")
        if not isinstance(row.get("seed"), int | None):
            raise SettingError(f"{where}: seed={row['seed']!r} is not a whole number. Mend it, or leave it out.")
        yield where, row


def _from_results(results: Path, which: Which) -> PictureSet:
    field = "image" if which == "final" else "draft"
    entries: list[Entry] = []
    left_out = 0
    for where, row in _rows(results):
        name = row.get(field)
        if name is None and (row.get("error") or which == "draft"):
            left_out += 1
            continue
        if not isinstance(name, str):
            raise SettingError(f"{where}: {field}={name!r}: the picture's place beside this file is due. Mend it.")
        if not (results.parent / name).is_file():
            raise SettingError(f"{where}: {results.parent / name} is not there. Paint it again, or remove the line.")
        entries.append(Entry(results.parent / name, row["prompt"], row.get("seed")))
    if not entries:
        what = "drafts: it was painted by the teacher alone" if which == "draft" and left_out else "pictures"
        raise SettingError(f"{results} names no {what}. Give another run, or another --which.")
    return PictureSet(f"{results.parent}{' (drafts)' if which == 'draft' else ''}", tuple(entries), left_out)


def _with_rows(entries: Sequence[Entry], results: Path) -> list[Entry]:
    """Prompts of a results file beside the folder; if it names none of the pictures, it belongs to others."""
    rows: dict[Path, dict[str, Any]] = {}
    for _, row in _rows(results):
        for name in (row.get("image"), row.get("draft")):
            if isinstance(name, str):
                rows[(results.parent / name).resolve()] = row
    mine = [rows.get(e.path.resolve()) for e in entries]
    if not any(mine):
        return list(entries)
    for e, row in zip(entries, mine, strict=True):
        if row is None:
            raise SettingError(f"{results} names other pictures of this folder, not {e.path.name}: move that one away.")
    return [replace(e, prompt=r["prompt"], seed=r.get("seed")) for e, r in zip(entries, mine, strict=True) if r is not None]
