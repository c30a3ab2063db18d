"""Oracles by the card's `kind`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from allaprima.core.errors import ModelError
from allaprima.oracles.oracle import Oracle

Encode = Callable[[Sequence[str]], Tensor]


def _digest(folder: Path) -> str:
    """Config and weights: either can change a score."""
    parts = [(folder / name).read_bytes() for name in ("config.json", "model.safetensors")]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def _image_text(folder: Path, encode: Encode) -> Oracle:
    from allaprima.oracles.image_text import ImageTextOracle, ImageTextScorer

    scorer = ImageTextScorer.from_pretrained(folder)
    return ImageTextOracle(scorer, encode, "image_text", _digest(folder))


def _dual_encoder(folder: Path, encode: Encode) -> Oracle:
    from allaprima.oracles.dual_encoder import DualEncoder, DualEncoderOracle

    encoder = DualEncoder.from_pretrained(folder)
    return DualEncoderOracle(encoder, encode, "dual_encoder", _digest(folder))


ORACLES: dict[str, Callable[[Path, Encode], Oracle]] = {"image_text": _image_text, "dual_encoder": _dual_encoder}
"""`kind` -> loader(folder, the pair's text encoder)."""


def load_oracle(kind: str, folder: Path, encode: Encode) -> Oracle:
    """An oracle by kind; raises `ModelError` for an unknown kind or a broken folder."""
    if kind not in ORACLES:
        raise ModelError(f"oracle kind {kind!r} is not known: {', '.join(ORACLES)} are. Mend `oracle.kind` in the card.")
    made: Any = ORACLES[kind](folder, encode)
    # So that it can be saved with the models it goes with, to the byte.
    made.folder, made.kind = folder, kind
    return made
