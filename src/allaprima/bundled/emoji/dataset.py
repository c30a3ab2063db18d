"""The emoji data set: 64-pixel pictures with a concept, a style, a licence and a split.

Read from a tar of `NNNNN.png` + `NNNNN.json` as `build.py` makes it. Captions are `"concept[, tone skin], style"`.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from allaprima.core.errors import ModelError

STYLES = ("noto", "twemoji", "fluent flat", "fluent 3d")


@dataclass(frozen=True)
class EmojiRow:
    """What is known of one picture."""

    concept: str
    style: str
    skin: str
    license: str
    split: str

    @property
    def caption(self) -> str:
        """The text the pictures are trained with."""
        return ", ".join(part for part in (self.concept, f"{self.skin} skin" if self.skin else "", self.style) if part)


@dataclass(frozen=True)
class EmojiData:
    """Pictures `(N, 3, 64, 64)` uint8 and their rows."""

    images: Tensor
    rows: Sequence[EmojiRow]
    sha256: str

    def pick(self, concepts: Collection[str] | None = None, split: str | None = None, skin: bool = False) -> EmojiData:
        """The rows of these concepts and this split; variants with a skin tone only when asked."""
        keep = [
            i
            for i, r in enumerate(self.rows)
            if (concepts is None or r.concept in concepts) and (split is None or r.split == split) and (skin or not r.skin)
        ]
        return EmojiData(self.images[keep], [self.rows[i] for i in keep], self.sha256)


def known_concepts() -> list[str]:
    """The concepts the bundled pair is trained on."""
    text = resources.files("allaprima.bundled.emoji").joinpath("concepts.txt").read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def load_tar(path: Path) -> EmojiData:
    """Read the data set; raises `ModelError` with the next step if the file is missing or broken."""
    if not path.exists():
        raise ModelError(f"{path} does not exist: build it with `python -m allaprima.bundled.emoji.build --out {path}`.")
    pictures: dict[str, np.ndarray] = {}
    rows: dict[str, EmojiRow] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            stream = tar.extractfile(member)
            if stream is None:
                continue
            stem, _, kind = member.name.rpartition(".")
            if kind == "png":
                pictures[stem] = np.asarray(Image.open(io.BytesIO(stream.read())).convert("RGB"))
            elif kind == "json":
                raw = json.loads(stream.read())
                rows[stem] = EmojiRow(raw["concept"], raw["style"], raw.get("skin") or "", raw["license"], raw["split"])
    names = sorted(pictures)
    if not names or set(names) != set(rows):
        raise ModelError(f"{path} is not an emoji data set: every NNNNN.png needs its NNNNN.json. Build it again.")
    images = torch.from_numpy(np.stack([pictures[n] for n in names])).permute(0, 3, 1, 2).contiguous()
    return EmojiData(images, [rows[n] for n in names], hashlib.sha256(path.read_bytes()).hexdigest())
