"""The training loop every method shares: EMA copies, checkpoints, exact resume, a NaN guard, a logged curve.

A method gives a `Loss`: a function of (model, emas, step's generator) that returns a scalar. All randomness of a step
comes from a generator seeded with (seed, step), so a resumed run needs no random state and equals an
uninterrupted one.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from allaprima.core.errors import TrainingError
from allaprima.distill.checkpoint import TrainingState, load_checkpoint, read_meta, save_checkpoint
from allaprima.distill.devices import Devices, whole_tensor
from allaprima.distill.shared_copy import shared, shared_copy

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

    def identity(self, parts: int) -> dict[str, Any]:
        """What a resumed training must have in common with the stopped one; `parts` batches a step."""
        plain = {**asdict(self), "emas": dict(self.emas)}
        return plain if parts == 1 else {**plain, "parts": parts}


@dataclass(frozen=True)
class TrainingProgress:
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
    """`ema <- decay * ema + (1 - decay) * model`, parameters and floating buffers, in one fused pass.

    What both share (`twins.twin`: what is frozen) has nowhere to go.
    """
    pairs = [
        (mine, theirs)
        for mine, theirs in zip(ema.state_dict().values(), model.state_dict().values(), strict=True)
        if mine.is_floating_point() and not shared(mine, theirs)
    ]
    if pairs:
        ours, theirs = [mine for mine, _ in pairs], [theirs for _, theirs in pairs]
        torch._foreach_lerp_(ours, theirs, 1.0 - decay)  # pyright: ignore[reportPrivateUsage]


def step_generator(seed: int, step: int, part: int = 0) -> torch.Generator:
    """The one source of randomness of a step's part (see `devices`)."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step + part * 0x9E37_79B9_7F4A_7C15) % (2**63))


def adamw(network: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    """The workshop's optimizer over what of `network` is trainable; `run` sets its learning rate at each step."""
    return torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad],
        lr=config.learning_rate,
        betas=(0.9, config.adam_beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )


def descend(
    loss: Callable[[torch.Generator], Tensor], generators: Sequence[torch.Generator],
    optimizers: Sequence[torch.optim.Optimizer], config: LoopConfig, what: str, devices: Devices,
    networks: Iterable[nn.Module] = (),
) -> float:  # fmt: skip
    """One step down the gradient of the mean of `loss` over all parts, clipped by each optimizer's own norm.

    `generators`: one for each of this process's parts; `networks`: those that were placed to be passed `again`. Returns the
    loss. Raises `TrainingError`, before any weight is touched, if the loss or a gradient is no finite number.
    """
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    values: list[Tensor] = []
    for g in generators:
        # Layers that draw for themselves (dropout) do so from the global generator: a part's masks are its own, in whichever
        # process it runs.
        torch.manual_seed(g.initial_seed())
        with devices.autocast():
            value = loss(g)
        devices.backward(value)
        values.append(value.detach())
    devices.rest(networks)
    current = devices.mean(torch.stack(values).mean())
    advice = f"Lower learning_rate (now {config.learning_rate}) or max_grad_norm and start again from it."
    if not math.isfinite(current):
        raise TrainingError(f"the loss became {current} at {what}. {advice}")
    for optimizer in optimizers:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        devices.average(parameters)
        norm = float(whole_tensor(nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)))
        # A gradient can overflow where the loss doesn't (a square root at 0); clipping would spread it over all weights.
        if not math.isfinite(norm):
            raise TrainingError(f"the gradient's norm became {norm} at {what}. {advice}")
    for optimizer in optimizers:
        optimizer.step()
    return current


def update_emas(emas: Mapping[str, nn.Module], model: nn.Module, config: LoopConfig, step: int) -> None:
    """Move each EMA copy towards `model` after `step` earlier moves."""
    for name, decay in config.emas.items():
        # A short history first: a decay of .999 would otherwise remember the random start for thousands of steps.
        ema_update(emas[name], model, min(decay, (step + 1) / (step + 10)) if decay > 0.99 else decay)


def train(
    model: nn.Module,
    loss: Loss,
    config: LoopConfig,
    folder: Path,
    recipe: Mapping[str, Any],
    on_checkpoint: Callable[[Mapping[str, nn.Module], TrainingProgress], None] | None = None,
    stop_after_seconds: float | None = None,
    stop: Callable[[Mapping[str, nn.Module], int], bool] | None = None,
    devices: Devices | None = None,
) -> dict[str, nn.Module]:
    """Train `model` in place; returns its EMA copies. Resumes from `folder` when it holds a checkpoint.

    Writes `checkpoint.safetensors` every `checkpoint_seconds`, `curve.csv` (step, samples, seconds, loss, lr) every
    `log_every` steps. `stop(emas, steps done)` is asked before each step and once after the last: true ends the training.
    Raises `TrainingError` when the loss stops being a number (the last good checkpoint stays), or when the folder belongs
    to another recipe.
    """
    devices = devices or Devices()
    emas = {name: devices.place(shared_copy(model).requires_grad_(False)) for name in config.emas}
    devices.place(model)
    optimizer = adamw(model, config)

    def update(step: int) -> dict[str, float]:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        what = f"step {step}; the last good checkpoint is in {folder}"
        generators = [step_generator(config.seed, step, part) for part in devices.parts]
        current = descend(lambda g: loss(model, emas, g), generators, [optimizer], config, what, devices)
        update_emas(emas, model, config, step)
        return {"loss": current}

    identity = {"recipe": dict(recipe), "loop": config.identity(devices.whole)}
    parts = TrainingState({"model": model}, {"optim": optimizer}, emas)
    run(parts, update, ("loss",), config, folder, identity, on_checkpoint, stop_after_seconds, stop, devices)
    return emas


def run(
    parts: TrainingState,
    update: Callable[[int], Mapping[str, float]],
    losses: Sequence[str],
    config: LoopConfig,
    folder: Path,
    identity: Mapping[str, Any],
    on_checkpoint: Callable[[Mapping[str, nn.Module], TrainingProgress], None] | None = None,
    stop_after_seconds: float | None = None,
    stop: Callable[[Mapping[str, nn.Module], int], bool] | None = None,
    devices: Devices | None = None,
) -> None:
    """What every training has in common: resume, checkpoints, the curve, when to stop.

    `update(step)` trains the parts by one step and returns some of `losses` by name; the first of them is the one
    `TrainingProgress` reports, and it should come at every step. `identity`: plain data that must be the same for a resume.
    Raises `TrainingError` when the folder belongs to another recipe.
    """
    devices = devices or Devices()
    folder.mkdir(parents=True, exist_ok=True)
    identity = json.loads(json.dumps(identity))
    step, spent, running = _resume(folder, parts, identity, losses)
    started = last_save = time.monotonic()
    samples = config.train_batch_size * devices.whole
    logged = step, started

    def save() -> None:
        now = spent + time.monotonic() - started
        meta = {"identity": identity, "step": step, "seconds": now, "loss": running[losses[0]], "losses": running}
        save_checkpoint(folder, parts, meta, devices.main)
        if on_checkpoint is not None and devices.main:
            on_checkpoint(parts.emas, TrainingProgress(step, step * samples, now, running[losses[0]]))
        devices.wait()

    with _open_curve(folder / "curve.csv", step, losses) if devices.main else io.StringIO() as rows:
        writer = csv.writer(rows)
        while not (stop is not None and stop(parts.emas, step)) and step < config.max_train_steps:
            for name, value in update(step).items():
                running[name] = value if math.isnan(running[name]) else 0.98 * running[name] + 0.02 * value
            step += 1
            if step % config.log_every == 0:
                means = [f"{running[name]:.6f}" for name in losses]
                seconds = spent + time.monotonic() - started
                rate = f"{learning_rate(config, step):.3e}"
                writer.writerow([step, step * samples, f"{seconds:.1f}", *means, rate])
                rows.flush()
                now = time.monotonic()
                speed = (step - logged[0]) * samples / max(now - logged[1], 1e-9)
                logged = step, now
                told = {name: value for name, value in running.items() if math.isfinite(value)}
                devices.log({**told, "lr": float(rate), "samples_per_second": speed}, step)
            if devices.agree(time.monotonic() - last_save > config.checkpoint_seconds):
                save()
                last_save = time.monotonic()
            if stop_after_seconds is not None and devices.agree(time.monotonic() - started > stop_after_seconds):
                break
    save()


def _resume(
    folder: Path, parts: TrainingState, identity: Mapping[str, Any], losses: Sequence[str]
) -> tuple[int, float, dict[str, float]]:
    """Steps, seconds and running losses so far; the parts are restored if the folder holds a checkpoint."""
    running = dict.fromkeys(losses, math.nan)
    if not (folder / "checkpoint.safetensors").exists():
        return 0, 0.0, running
    # Whose folder it is comes first: another recipe's networks needn't fit, and must not be half overwritten by them.
    meta = read_meta(folder)
    if meta["identity"] != identity:
        raise TrainingError(
            f"{folder} holds a training of another recipe: {_difference(meta['identity'], identity)}."
            " Use a fresh folder, or the same recipe to resume."
        )
    load_checkpoint(folder, parts)
    return int(meta["step"]), float(meta["seconds"]), {**running, **meta.get("losses", {})}


def _open_curve(path: Path, first: int, losses: Sequence[str]) -> Any:
    """Open the curve for appending, without the rows a killed run logged past its last checkpoint."""
    kept = [",".join(["step", "samples", "seconds", *losses, "lr"])]
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
