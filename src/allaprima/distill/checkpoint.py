"""Training checkpoints: everything a training needs to go on as if it had never stopped.

One safetensors file holds the weights, the EMA copies and the optimizer's moments; its header holds counters and the recipe.
It is written beside, synced and renamed, so a kill at any instant leaves the last whole one. Parameters that are frozen (the
base under adapters) are left out: a training that goes on has them from where it began.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from allaprima.core.errors import TrainingError
from allaprima.distill.devices import share_of, whole_tensor
from allaprima.distill.shared_copy import frozen, moving


def flatten_optimizer(optimizer: torch.optim.Optimizer, prefix: str = "optim") -> dict[str, Tensor]:
    """The optimizer's moments as flat tensors `<prefix>.<index>.<name>` (no pickle)."""
    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}.{i}.{k}": (whole_tensor(v) if isinstance(v, Tensor) else torch.tensor(float(v))).contiguous()
        for i, moments in state.items()
        for k, v in moments.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str = "optim") -> None:
    """Inverse of `flatten_optimizer`.

    Moments take their parameter's memory format: the fused optimizer walks through memory, and would pair the moments of a
    contiguous tensor with the wrong weights of a channels_last one.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(f"{prefix}."):
            index, key = name[len(prefix) + 1 :].split(".", 1)
            like = parameters[int(index)]
            if value.shape == like.shape:
                value = torch.empty_like(like, dtype=value.dtype).copy_(share_of(value, like))
            state.setdefault(int(index), {})[key] = value
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)


def atomic_write(path: Path, write: Any) -> None:
    """Call `write(temporary_path)`, sync it to disk and rename it to `path`.

    Raises `TrainingError` when that fails, as on a full disk; the file that was there stays.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as f:
            os.fsync(f.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as e:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        kept = "The last good one stays" if path.exists() else "There is none yet"
        raise TrainingError(f"{path} cannot be written: {e}. {kept}; free some space and start the same again.") from e


@dataclass(frozen=True)
class TrainingState:
    """What a training is made of; each part is kept under its name.

    One network is `{"model": ...}` with optimizer `{"optim": ...}`, as checkpoints have always held it; several are named
    after what they do, their optimizers `optim.<name>`. EMA copies are kept as `ema.<name>`.
    """

    networks: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    emas: Mapping[str, nn.Module]

    def modules(self) -> dict[str, nn.Module]:
        """Networks and EMA copies by the prefix of their tensors. Raises `TrainingError` if one would hide in another."""
        modules = {**self.networks, **{f"ema.{name}": ema for name, ema in self.emas.items()}}
        prefixes = [*modules, *self.optimizers]
        hidden = [a for a in prefixes for b in prefixes if a is not b and f"{a}.".startswith(f"{b}.")]
        if hidden:
            raise TrainingError(f"parts {hidden} share a prefix with others of {prefixes}: give each a name of its own.")
        return modules


def save_checkpoint(folder: Path, parts: TrainingState, meta: Mapping[str, Any], write: bool = True) -> None:
    """Write `checkpoint.safetensors`; its header carries `meta` so weights and counters can't part company.

    Of several processes all must come here, for shares of sharded tensors are gathered; one of them should `write`.
    """
    tensors: dict[str, Tensor] = {}
    still = frozen(parts.networks.values())
    for name, module in parts.modules().items():
        tensors |= {f"{name}.{k}": whole_tensor(v.detach()).contiguous() for k, v in moving(module, still).items()}
    for name, optimizer in parts.optimizers.items():
        tensors |= flatten_optimizer(optimizer, name)
    header = {"meta": json.dumps(dict(meta))}
    if not write:
        return
    atomic_write(folder / "checkpoint.safetensors", lambda p: save_file(tensors, p, metadata=header))


def read_meta(folder: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given as `meta`, without the tensors."""
    with safe_open(folder / "checkpoint.safetensors", "pt") as f:
        return json.loads(f.metadata()["meta"])


def load_checkpoint(folder: Path, parts: TrainingState) -> None:
    """Restore what `save_checkpoint` wrote. Raises `TrainingError` if it doesn't fit."""
    path = folder / "checkpoint.safetensors"
    tensors = load_file(path)
    still = frozen(parts.networks.values())
    try:
        for name, module in parts.modules().items():
            start, state, moves = f"{name}.", module.state_dict(), moving(module, still)
            given = {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}
            given = {k: share_of(v, state[k]) if k in state else v for k, v in given.items()}
            module.load_state_dict({k: v for k, v in state.items() if k not in moves} | given)
    except RuntimeError as e:
        raise TrainingError(f"{path} holds another network: {e}. Start in a fresh folder, or use the same recipe.") from e
    for name, optimizer in parts.optimizers.items():
        restore_optimizer(optimizer, tensors, name)
