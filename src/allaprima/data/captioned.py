"""Captioned pictures to train on, read one after the other: a folder, WebDataset tars, or a Hugging Face data set.

Sources are named by a string:

- `pictures/`: a folder of pictures with captions in `metadata.jsonl` or `metadata.csv` (columns `file_name`, `text`, as
  `datasets`' image folder has them), or beside each picture in `NAME.txt`;
- `shards/*.tar`, `one.tar`: tars in WebDataset's convention, a picture and a `.txt` or `.json` of the same stem, in that
  order of names; a JSON's caption is under `caption`, `text` or `prompt`;
- `dataset:ID[:SPLIT]`: a data set of the `datasets` library by id or by the folder of `save_to_disk`, columns `image` and
  `text` (or `caption`, `prompt`).
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from allaprima.core.errors import SettingError

CAPTIONS = ("text", "caption", "prompt")
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
Caption = Callable[[Mapping[str, Any]], str | None]
"""A row's fields to its caption; None leaves the picture out."""


@dataclass(frozen=True)
class Captioned:
    """One picture with its caption and where it was found."""

    image: Image.Image
    caption: str
    key: str


def caption_of(fields: Mapping[str, Any]) -> str | None:
    """Return the first of `text`, `caption`, `prompt` that is there."""
    for name in CAPTIONS:
        if isinstance(fields.get(name), str):
            return str(fields[name])
    return None


def read_captioned(source: str, caption: Caption | None = None) -> Iterator[Captioned]:
    """Pictures in a fixed order, opened one at a time. `caption` makes captions from other fields of a row.

    Raises `SettingError` for a source that isn't there, holds no pictures, or has a picture without a caption.
    """
    make = caption or caption_of
    if source.startswith("dataset:"):
        return _from_datasets(source, make)
    if source.endswith(".tar"):
        return _from_tars(source, caption)
    if not Path(source).is_dir():
        raise SettingError(
            f"data={source!r} is no folder, no *.tar and no dataset:ID. Give captioned pictures as one of these."
        )
    return _from_folder(Path(source), make)


def _from_folder(folder: Path, caption: Caption) -> Iterator[Captioned]:
    rows = _metadata(folder)
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix.lower() in ENDINGS)
    if not names:
        raise SettingError(f"{folder} holds no pictures: {', '.join(ENDINGS)} are read.")
    for name in names:
        beside = (folder / name).with_suffix(".txt")
        if name in rows:
            text = caption(rows[name])
        elif beside.is_file():
            text = caption({"text": beside.read_text(encoding="utf-8").strip()})
        else:
            raise SettingError(
                f"{folder / name} has no caption: name it in {folder / 'metadata.jsonl'} (file_name, text), or write"
                f" {beside.name} beside it."
            )
        if text is not None:
            yield Captioned(_opened(folder / name, name), text, name)


def _metadata(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Rows of `metadata.jsonl` or `metadata.csv` by file name."""
    rows: list[Mapping[str, Any]] = []
    lines = folder / "metadata.jsonl"
    table = folder / "metadata.csv"
    try:
        if lines.is_file():
            rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines() if line.strip()]
        elif table.is_file():
            with table.open(encoding="utf-8", newline="") as f:
                rows = list(csv.DictReader(f))
        return {str(r["file_name"]): r for r in rows}
    except (ValueError, KeyError, TypeError) as e:
        raise SettingError(f"the metadata of {folder} cannot be read: {e!r}. Rows with file_name and text are due.") from e


def _from_tars(pattern: str, caption: Caption | None) -> Iterator[Captioned]:
    where = Path(pattern)
    paths = sorted(where.parent.glob(where.name))
    if not paths:
        raise SettingError(f"data={pattern!r} names no file: give a tar, or a pattern such as 'shards/*.tar'.")
    for path in paths:
        try:
            with tarfile.open(path) as tar:
                yield from _from_tar(tar, str(path), caption)
        except tarfile.TarError as e:
            raise SettingError(f"{path} is not a whole tar: {e}. Make or copy it again.") from e


def _from_tar(tar: tarfile.TarFile, path: str, caption: Caption | None) -> Iterator[Captioned]:
    """Members of one stem stand together, as WebDataset writes them."""
    stem, parts = "", dict[str, bytes]()
    for member in tar:
        stream = tar.extractfile(member)
        if stream is None:
            continue
        folder, _, name = member.name.rpartition("/")
        base, _, kind = name.partition(".")
        key = f"{folder}/{base}" if folder else base
        if key != stem:
            yield from _sample(parts, f"{path}:{stem}", caption)
            stem, parts = key, {}
        parts[kind.lower()] = stream.read()
    yield from _sample(parts, f"{path}:{stem}", caption)


def _sample(parts: Mapping[str, bytes], key: str, caption: Caption | None) -> Iterator[Captioned]:
    kind = next((k for k in parts if f".{k}" in ENDINGS), None)
    if kind is None:
        return
    fields: dict[str, Any] = {}
    try:
        if "json" in parts:
            fields = json.loads(parts["json"])
        if "txt" in parts:
            fields["text"] = parts["txt"].decode().strip()
    except ValueError as e:
        raise SettingError(f"{key}: its .json or .txt cannot be read: {e}. Mend or leave out that sample.") from e
    text = (caption or caption_of)(fields)
    if text is None and caption is None:
        raise SettingError(
            f"{key} has no caption: a .txt, or a .json with {' or '.join(CAPTIONS)}, is due beside the picture;"
            f" this one has {', '.join(fields) or 'neither'}."
        )
    if text is not None:
        yield Captioned(_opened(io.BytesIO(parts[kind]), key), text, key)


def _from_datasets(source: str, caption: Caption) -> Iterator[Captioned]:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise SettingError(f"data={source!r} needs the datasets library: pip install 'allaprima[train]'.") from e
    _, _, name = source.partition(":")
    name, _, split = name.partition(":")
    try:
        if Path(name).is_dir() and (Path(name) / "dataset_info.json").is_file():
            rows: Any = datasets.load_from_disk(name)
        else:
            rows = datasets.load_dataset(name, split=split or "train")
    except Exception as e:
        raise SettingError(f"data={source!r} cannot be loaded: {e}. Check the id, the split and the network.") from e
    for i, row in enumerate(rows):
        text = caption(row)
        if text is None:
            raise SettingError(f"{source}, row {i} has no caption: a column {' or '.join(CAPTIONS)} is due.")
        yield Captioned(_rgb(row["image"]), text, f"{source}:{i}")


def _opened(where: Any, key: str) -> Image.Image:
    try:
        with Image.open(where) as image:
            return _rgb(image)
    except (OSError, ValueError) as e:
        raise SettingError(f"{key} is no picture that can be read: {e}. Mend or remove it.") from e


def _rgb(image: Image.Image) -> Image.Image:
    """On white where it is transparent."""
    if image.mode in ("RGBA", "LA", "P"):
        whole = image.convert("RGBA")
        white = Image.new("RGBA", whole.size, "white")
        return Image.alpha_composite(white, whole).convert("RGB")
    return image.convert("RGB")
