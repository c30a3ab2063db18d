"""`allaprima convert-oracle`: a published checkpoint to a folder that cards can name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert_oracle(
    kind: Annotated[str, typer.Argument(help="imagereward, hpsv2, clip (open_clip's) or aesthetic.")],
    checkpoint: Annotated[Path, typer.Argument(help="The published file: .pt, .pth, .bin or .safetensors.")],
    out: Annotated[Path, typer.Option(help="Folder that is made; a card's oracle.source.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder: bert-base-uncased's for imagereward, CLIP's for hpsv2 and clip.")
    ] = None,
    clip: Annotated[Path | None, typer.Option(help="Of aesthetic: a folder of openai/clip-vit-large-patch14.")] = None,
    activation: Annotated[str, typer.Option(help="Of clip: gelu; quick_gelu for OpenAI's and -quickgelu models.")] = "gelu",
) -> None:
    """Turn a published oracle into safetensors, once; nothing in the file is run."""
    from allaprima.experiments.convert_oracle import convert_oracle_command

    convert_oracle_command(kind, checkpoint, out, tokenizer, clip, activation)
