"""Loading of the diffusers folder format: safetensors only, no pickle, no remote code, each component once."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from allaprima.core.errors import ModelError, UnsafeWeights

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

# Where a class named in a folder's config lives: only these are ever imported.
CLASSES: Mapping[str, str] = {
    "UNet2DConditionModel": "diffusers.models.unets.unet_2d_condition",
    "AutoencoderKL": "diffusers.models.autoencoders.autoencoder_kl",
    "AutoencoderDC": "diffusers.models.autoencoders.autoencoder_dc",
    "AutoencoderTiny": "diffusers.models.autoencoders.autoencoder_tiny",
    "PixelShuffleAutoencoder": "allaprima.models.autoencoder",
    "BertModel": "transformers",
    "CLIPTextModel": "transformers",
}


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


def load_component(folder: Path) -> Any:
    """A network from its folder, float32, frozen, in evaluation mode."""
    config = read_json(folder / "config.json")
    name = str(config.get("_class_name") or (config.get("architectures") or ["?"])[0])
    if name not in CLASSES:
        raise ModelError(f"{folder / 'config.json'} names the class {name!r}: {', '.join(CLASSES)} can be loaded.")
    weight_files(folder)
    _quiet()
    cls = getattr(importlib.import_module(CLASSES[name]), name)
    try:
        net = cls.from_pretrained(folder, use_safetensors=True, torch_dtype=torch.float32, **_low_memory(name))
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as e:
        raise ModelError(f"{folder} cannot be loaded as {name}: {e}. Copy or download the model again.") from e
    return net.float().eval().requires_grad_(False)


def _low_memory(name: str) -> dict[str, Any]:
    return {} if CLASSES[name] == "transformers" else {"low_cpu_mem_usage": True}


def _quiet() -> None:
    """Progress bars of weight loading belong to long downloads, not to a folder read in milliseconds."""
    import transformers

    transformers.utils.logging.disable_progress_bar()


def load_tokenizer(folder: Path) -> Any:
    """A tokenizer from its folder."""
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder: a tokenizer is due. Check the card's sources.")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as e:
        raise ModelError(f"{folder} cannot be loaded as a tokenizer: {e}. Copy or download the model again.") from e


def fingerprint(*folders: Path) -> str:
    """Hash of every weight file and config of these folders: what a calibration is tied to."""
    digest = hashlib.sha256()
    for folder in folders:
        files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".json") and p.name != "provenance.json")
        for p in files:
            digest.update(p.name.encode())
            digest.update(hashlib.sha256(p.read_bytes()).digest())
    return digest.hexdigest()[:16]


Loader = Callable[[Path], Any]
"""Reads one component's folder."""
