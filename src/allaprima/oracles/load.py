"""Oracles by the card's `kind`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from allaprima.core.errors import ModelError
from allaprima.oracles.oracle import Oracle

Encode = Callable[[Sequence[str]], Tensor]


def _image_text(folder: Path, encode: Encode) -> Oracle:
    import hashlib

    from allaprima.oracles.image_text import ImageTextOracle, ImageTextScorer

    scorer = ImageTextScorer.from_pretrained(folder)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]
    return ImageTextOracle(scorer, encode, "image_text", digest)


ORACLES: dict[str, Callable[[Path, Encode], Oracle]] = {"image_text": _image_text}
"""`kind` -> loader(folder, the pair's text encoder)."""


def load_oracle(kind: str, folder: Path, encode: Encode) -> Oracle:
    """An oracle by kind; raises `ModelError` for an unknown kind or a broken folder."""
    if kind not in ORACLES:
        raise ModelError(f"oracle kind {kind!r} is not known: {', '.join(ORACLES)} are. Mend `oracle.kind` in the card.")
    return ORACLES[kind](folder, encode)
