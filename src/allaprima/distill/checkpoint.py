"""Training checkpoints: everything a training needs to go on as if it had never stopped.

One safetensors file holds the weights, the EMA copies and the optimizer's moments; a JSON beside it holds counters
and the recipe. Both are written beside, synced and renamed, so a kill at any instant leaves the last whole one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from allaprima.core.errors import TrainingError


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's moments as flat tensors `optim.<index>.<name>` (no pickle)."""
    state = optimizer.state_dict()["state"]
    return {
        f"optim.{i}.{k}": (v if isinstance(v, Tensor) else torch.tensor(float(v))).contiguous()
        for i, moments in state.items()
        for k, v in moments.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `flatten_optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optim."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)


def atomic_write(path: Path, write: Any) -> None:
    """Call `write(temporary_path)`, sync it to disk and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    write(temporary)
    with temporary.open("rb") as f:
        os.fsync(f.fileno())
    temporary.replace(path)


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    emas: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    meta: Mapping[str, Any],
) -> None:
    """Write `checkpoint.safetensors`; its header carries `meta` so weights and counters can't part company."""
    tensors = {f"model.{k}": v.detach().contiguous() for k, v in model.state_dict().items()}
    for name, ema in emas.items():
        tensors |= {f"ema.{name}.{k}": v.detach().contiguous() for k, v in ema.state_dict().items()}
    tensors |= flatten_optimizer(optimizer)
    header = {"meta": json.dumps(dict(meta))}
    atomic_write(folder / "checkpoint.safetensors", lambda p: save_file(tensors, p, metadata=header))


def load_checkpoint(
    folder: Path, model: nn.Module, emas: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Restore what `save_checkpoint` wrote; returns its `meta`. Raises `TrainingError` if it doesn't fit."""
    from safetensors import safe_open

    path = folder / "checkpoint.safetensors"
    with safe_open(path, "pt") as f:
        meta: dict[str, Any] = json.loads(f.metadata()["meta"])
    tensors = load_file(path)

    def part(prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

    try:
        model.load_state_dict(part("model."))
        for name, ema in emas.items():
            ema.load_state_dict(part(f"ema.{name}."))
    except RuntimeError as e:
        raise TrainingError(f"{path} holds another network: {e}. Start in a fresh folder, or use the same recipe.") from e
    restore_optimizer(optimizer, tensors)
    return meta
