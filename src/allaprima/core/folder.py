"""Model folders on disk: JSON and safetensors only, no pickle; each unreadable file is named with the next step."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from allaprima.core.errors import ModelError, UnsafeWeights

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


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a component, opened once so that a truncated file is named before anything is built."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder: a component in diffusers' format is due. Check the card's sources.")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = [p.name for p in sorted(folder.iterdir()) if p.suffix in PICKLES]
        if pickles:
            raise UnsafeWeights(
                f"{folder} holds {pickles[0]}, a pickle, which can run code when it is read: safetensors are due."
                " Convert it (diffusers: `save_pretrained(..., safe_serialization=True)`) or use another revision."
            )
        raise ModelError(f"{folder} holds no .safetensors: copy or download the model again.")
    for f in files:
        try:
            with safe_open(f, "pt") as opened:
                opened.keys()
        except (SafetensorError, OSError) as e:
            raise ModelError(
                f"{f} ({f.stat().st_size} bytes) is unreadable or truncated: {e}. Copy or download it again."
            ) from e
    return files


def fingerprint(*folders: Path) -> str:
    """Hash of every weight file and config of these folders: what a calibration is tied to."""
    digest = hashlib.sha256()
    for folder in folders:
        files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".json") and p.name != "provenance.json")
        for p in files:
            digest.update(p.name.encode())
            digest.update(hashlib.sha256(p.read_bytes()).digest())
    return digest.hexdigest()[:16]
