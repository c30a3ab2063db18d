"""Model folders on disk: JSON and safetensors only, no pickle; each unreadable file is named with the next step."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from allaprima.core.errors import ModelError, UnsafeWeightsError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises `ModelError` with the next step."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise ModelError(f"{path} is missing: a model in diffusers' folder format has one. Check the folder's name.") from e
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as e:
        raise ModelError(f"{path} cannot be read: {e}. Copy or download the model again.") from e
    if not isinstance(value, dict):
        raise ModelError(f"{path} should hold a JSON object. Copy or download the model again.")
    return value


def shards_of(folder: Path) -> list[str]:
    """File names that a component's own index says its weights are spread over; none where it is one file.

    Indices of copies in other precisions (`model.fp16.safetensors.index.json`) are left alone: they aren't read.
    """
    names = set[str]()
    for stem in ("diffusion_pytorch_model", "model"):
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            names |= {str(v) for v in dict(read_json(index).get("weight_map", {})).values()}
    return sorted(names)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a component, opened once so that a missing or truncated file is named before anything is built."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder: a component in diffusers' format is due. Check the card's sources.")
    files = sorted(folder.glob("*.safetensors"))
    missing = [name for name in shards_of(folder) if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{folder / missing[0]} is missing, one of {len(shards_of(folder))} files that the index beside it names: the"
            " download stopped half-way. Download the model again."
        )
    if not files:
        pickles = [p.name for p in sorted(folder.iterdir()) if p.suffix in PICKLES]
        if pickles:
            raise UnsafeWeightsError(
                f"{folder} holds {pickles[0]}, a pickle, which can run code when it is read: safetensors are due."
                " Convert it (diffusers: `save_pretrained(..., safe_serialization=True)`) or use another revision."
            )
        raise ModelError(f"{folder} holds no .safetensors: copy or download the model again.")
    for f in files:
        refuse_unreadable(f)
    return files


def refuse_unreadable(file: Path) -> None:
    """Raise `ModelError` for a safetensors file that is cut short, or none."""
    try:
        with safe_open(file, "pt") as opened:
            opened.keys()
    except (SafetensorError, OSError) as e:
        raise ModelError(
            f"{file} ({file.stat().st_size} bytes) is unreadable or truncated: {e}. Copy or download it again."
        ) from e


def fingerprint(*folders: Path) -> str:
    """Hash of every weight file and config of these folders: what a calibration is tied to."""
    digest = hashlib.sha256()
    for folder in folders:
        files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".json") and p.name != "provenance.json")
        for p in files:
            digest.update(p.name.encode())
            # By pieces: a large model's file is more than there is memory for beside the model.
            with p.open("rb") as f:
                digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()[:16]
