"""The training loop every method shares: EMA copies, checkpoints, exact resume, a NaN guard, a logged curve.

A method gives a `Loss`: a function of (model, emas, step's generator) that returns a scalar. All randomness of a step
comes from a generator seeded with (seed, step), so a resumed run needs no random state and equals an
uninterrupted one.
"""

from __future__ import annotations

import copy
import csv
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from allaprima.core.errors import TrainingError
from allaprima.distill.checkpoint import load_checkpoint, save_checkpoint

Loss = Callable[[nn.Module, Mapping[str, nn.Module], torch.Generator], Tensor]
"""`(model, emas, generator of this step) -> scalar loss`."""


@dataclass(frozen=True)
class LoopConfig:
    """Settings of a training; field names follow diffusers' training scripts."""

    max_train_steps: int
    train_batch_size: int
    learning_rate: float
    warmup_steps: int = 100
    lr_scheduler: str = "cosine"
    """`cosine` (to 1 % of the peak) or `constant`."""
    adam_beta2: float = 0.99
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    emas: Mapping[str, float] = field(default_factory=lambda: {"use": 0.999})
    """EMA copies by name, each with its decay a step."""
    seed: int = 0
    checkpoint_seconds: float = 180.0
    log_every: int = 20


@dataclass(frozen=True)
class Progress:
    """How far a training has come."""

    step: int
    samples: int
    seconds: float
    loss: float


def learning_rate(config: LoopConfig, step: int) -> float:
    """Linear warm-up over `warmup_steps`, then constant or a cosine to 1 % of the peak."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.lr_scheduler == "constant":
        return config.learning_rate * warm
    if config.lr_scheduler == "cosine":
        u = step / max(1, config.max_train_steps)
        return config.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(u, 1.0))))
    raise TrainingError(f"lr_scheduler={config.lr_scheduler!r} is not known: use 'cosine' or 'constant'.")


@torch.no_grad()
def ema_update(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """`ema <- decay * ema + (1 - decay) * model`, parameters and floating buffers, in one fused pass."""
    ours = [v for v in ema.state_dict().values() if v.is_floating_point()]
    theirs = [v for v in model.state_dict().values() if v.is_floating_point()]
    torch._foreach_lerp_(ours, theirs, 1.0 - decay)  # pyright: ignore[reportPrivateUsage]


def step_generator(seed: int, step: int) -> torch.Generator:
    """The one source of a step's randomness."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % (2**63))


def train(
    model: nn.Module,
    loss: Loss,
    config: LoopConfig,
    folder: Path,
    recipe: Mapping[str, Any],
    on_checkpoint: Callable[[Mapping[str, nn.Module], Progress], None] | None = None,
    stop_after_seconds: float | None = None,
    stop: Callable[[Mapping[str, nn.Module], int], bool] | None = None,
) -> dict[str, nn.Module]:
    """Train `model` in place; returns its EMA copies. Resumes from `folder` when it holds a checkpoint.

    Writes `checkpoint.safetensors` every `checkpoint_seconds`, `curve.csv` (step, samples, seconds, loss, lr) every
    `log_every` steps. `stop(emas, steps done)` is asked before each step and once after the last: true ends the training.
    Raises `TrainingError` when the loss stops being a number (the last good checkpoint stays), or when the folder belongs
    to another recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    emas = {name: copy.deepcopy(model).requires_grad_(False) for name in config.emas}
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=(0.9, config.adam_beta2), weight_decay=config.weight_decay, fused=True
    )
    identity = json.loads(json.dumps({"recipe": dict(recipe), "loop": {**asdict(config), "emas": dict(config.emas)}}))
    first, spent = 0, 0.0
    if (folder / "checkpoint.safetensors").exists():
        meta = load_checkpoint(folder, model, emas, optimizer)
        if meta["identity"] != identity:
            raise TrainingError(
                f"{folder} holds a training of another recipe: {_difference(meta['identity'], identity)}."
                " Use a fresh folder, or the same recipe to resume."
            )
        first, spent = int(meta["step"]), float(meta["seconds"])
    started = last_save = time.monotonic()
    curve = _open_curve(folder / "curve.csv", first)
    running = math.nan
    step = first

    def save() -> None:
        now = spent + time.monotonic() - started
        meta = {"identity": identity, "step": step, "seconds": now, "loss": running}
        save_checkpoint(folder, model, emas, optimizer, meta)
        if on_checkpoint is not None:
            on_checkpoint(emas, Progress(step, step * config.train_batch_size, now, running))

    with curve as rows:
        writer = csv.writer(rows)
        while not (stop is not None and stop(emas, step)) and step < config.max_train_steps:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            value = loss(model, emas, step_generator(config.seed, step))
            current = float(value.detach())
            if not math.isfinite(current):
                raise TrainingError(
                    f"the loss became {current} at step {step}; the last good checkpoint is in {folder}."
                    f" Lower learning_rate (now {config.learning_rate}) or max_grad_norm and start again from it."
                )
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            optimizer.step()
            for name, decay in config.emas.items():
                # A short history first: a decay of .999 would otherwise remember the random start for thousands of steps.
                ema_update(emas[name], model, min(decay, (step + 1) / (step + 10)) if decay > 0.99 else decay)
            step += 1
            running = current if math.isnan(running) else 0.98 * running + 0.02 * current
            if step % config.log_every == 0:
                seconds = spent + time.monotonic() - started
                writer.writerow(
                    [
                        step,
                        step * config.train_batch_size,
                        f"{seconds:.1f}",
                        f"{running:.6f}",
                        f"{learning_rate(config, step):.3e}",
                    ]
                )
                rows.flush()
            if time.monotonic() - last_save > config.checkpoint_seconds:
                save()
                last_save = time.monotonic()
            if stop_after_seconds is not None and time.monotonic() - started > stop_after_seconds:
                break
    save()
    return emas


def _open_curve(path: Path, first: int) -> Any:
    """Open the curve for appending, without the rows a killed run logged past its last checkpoint."""
    kept = ["step,samples,seconds,loss,lr"]
    if first and path.exists():
        kept += [r for r in path.read_text().splitlines()[1:] if r and int(r.split(",")[0]) <= first]
    path.write_text("\n".join(kept) + "\n")
    return path.open("a", newline="")


def _difference(a: Any, b: Any, where: str = "") -> str:
    """The first place where two nested dicts differ, for an error a person can act on."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}, key=str):
            if a.get(key) != b.get(key):
                return _difference(a.get(key), b.get(key), f"{where}.{key}" if where else str(key))
    return f"{where} was {a!r}, now {b!r}"
