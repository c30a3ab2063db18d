"""Conversion of a published oracle's checkpoint to a folder that cards can name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from allaprima.core.errors import SettingError

NEEDS = {"imagereward": "tokenizer", "hpsv2": "tokenizer", "clip": "tokenizer", "aesthetic": "clip"}
"""Kind -> what is needed beside the checkpoint."""


def convert_oracle_command(
    kind: str, checkpoint: Path, out: Path, tokenizer: Path | None, clip: Path | None, activation: str
) -> None:
    """Convert; says what to write in a card. Raises `SettingError` for options that the kind doesn't have."""
    if kind not in NEEDS:
        hint = " PickScore needs none: name its folder." if kind == "pickscore" else ""
        raise SettingError(f"kind={kind!r} can't be converted: {', '.join(NEEDS)} can.{hint}")
    given = {"tokenizer": tokenizer, "clip": clip}
    due = NEEDS[kind]
    if given[due] is None:
        raise SettingError(f"{kind} needs --{due}: the folder that `allaprima convert-oracle --help` names.")
    odd = next((name for name, value in given.items() if value is not None and name != due), None)
    if odd is not None or (activation != "gelu" and kind != "clip"):
        raise SettingError(f"--{odd or 'activation'} means nothing to {kind}: leave it out.")
    if activation not in ("gelu", "quick_gelu"):
        raise SettingError(f"activation={activation!r}: gelu or quick_gelu.")
    from allaprima.oracles.convert import CONVERSIONS

    more: dict[str, Any] = {"activation": activation} if kind == "clip" else {}
    CONVERSIONS[kind](checkpoint, given[due], out, **more)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"{out}: safetensors; in a card: oracle: {{kind: {kind}, source: {out}, license: ...}} (docs/oracles.md)")
