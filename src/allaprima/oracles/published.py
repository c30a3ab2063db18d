"""Published checkpoints, read without running anything that is in them.

Most reward models are published as pickles, which can run code when they are read. torch's restricted reader
(`weights_only=True`) makes tensors and plain containers only and refuses any other object before it is built; what it
refuses, we refuse. No file is read in any other way.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from allaprima.core.errors import ModelError, UnsafeWeightsError

NESTS = ("state_dict", "model", "model_state_dict")
"""Where trainers put the weights inside of a checkpoint."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Weights by their published names, from a pickle (.pt, .pth, .bin, .ckpt) or safetensors.

    Raises `UnsafeWeightsError` for a pickle that holds more than tensors, `ModelError` for a file that can't be read.
    """
    if not path.is_file():
        raise ModelError(f"{path} is not a file: give the published checkpoint that you downloaded.")
    if path.suffix == ".safetensors":
        try:
            return _named(load_file(path), path)
        except (SafetensorError, OSError) as e:
            raise ModelError(f"{path} ({path.stat().st_size} bytes) is unreadable: {e}. Download it again.") from e
    try:
        # Mapped, not read into memory twice; pickles of before torch 1.6 can't be mapped.
        raw: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=_zipped(path))
    except pickle.UnpicklingError as e:
        raise UnsafeWeightsError(
            f"{path} holds more than tensors, which could run code, and was not read: {_reason(e)}. Nothing of it was run."
            " Take the weights from where they were published; there is no option to trust a file."
        ) from e
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as e:
        raise ModelError(f"{path} ({path.stat().st_size} bytes) is no checkpoint that torch reads: {_reason(e)}.") from e
    if isinstance(raw, Mapping):
        raw = next((raw[n] for n in NESTS if isinstance(raw.get(n), Mapping)), raw)
    return _named(raw, path)


def _named(raw: Any, path: Path) -> dict[str, Tensor]:
    odd = "no names"
    if isinstance(raw, Mapping):
        odd = next((f"{str(k)[:60]!r} is none" for k, v in raw.items() if not isinstance(v, Tensor)), "" if raw else "empty")
    if odd:
        raise ModelError(f"{path} should hold tensors by name ({odd}). Check that it is the checkpoint of this oracle.")
    # Parallel training leaves a prefix.
    return {str(k).removeprefix("module."): v for k, v in raw.items()}


def _zipped(path: Path) -> bool:
    with path.open("rb") as f:
        return f.read(2) == b"PK"


def _reason(e: Exception) -> str:
    return str(e).strip().split("\n")[-1][:200] or type(e).__name__


def renamed(
    weights: Mapping[str, Tensor], names: Mapping[str, str], unused: tuple[str, ...], what: str
) -> dict[str, Tensor]:
    """Published weights under new names: every one has a place or is known to be `unused` (by prefix), none is missing.

    Raises `ModelError` naming the first that isn't so.
    """
    missing = sorted(set(names) - set(weights))
    if missing:
        raise ModelError(f"{missing[0]} ({len(missing)} in all) is missing: this is no checkpoint of {what}.")
    unknown = sorted(k for k in weights if k not in names and not k.startswith(unused))
    if unknown:
        raise ModelError(
            f"{unknown[0]} ({len(unknown)} in all) has no place in {what}: this checkpoint is of another architecture."
        )
    return {new: weights[old] for old, new in names.items()}
