"""Where a training runs: one process on a CPU or a GPU, or several that share the work of each step.

accelerate tells a process its device, starts the group of processes (`accelerate launch`), casts (`mixed_precision`) and
writes to trackers. Gradients are averaged here and not by a wrapper round the network: distribution matching runs a network
several times before it steps, and sends gradients of other networks' losses through it, which wrappers are not made for.

A step's work is a number of parts, `processes x gradient_accumulation_steps`, each a batch with randomness of its own,
whoever works on it. So two processes with two parts each do what one process with four does, up to the rounding of sums,
and a training may go on with another number of processes as long as the product is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from allaprima.core.errors import SettingError, TrainingError

TRACKERS = ("tensorboard", "wandb")
BLOCKS = ("down_blocks", "up_blocks", "transformer_blocks", "single_transformer_blocks")
"""Where a diffusers network keeps the blocks that are sharded one by one."""


class Devices:
    """One process's place among all. `Devices()` is a process alone, with networks where they are."""

    def __init__(self, accelerator: Any = None, accumulation: int = 1, sharded: bool = False) -> None:
        if accumulation < 1:
            raise SettingError(f"gradient_accumulation_steps={accumulation!r} is out of range: 1 or more; 1 is none.")
        self._accelerator, self._accumulation, self._sharded = accelerator, accumulation, sharded
        if sharded and not dist.is_initialized():
            raise SettingError(
                "fsdp shards networks over several processes and this is one alone: start it with accelerate launch, or"
                " leave fsdp out."
            )

    @classmethod
    def here(
        cls, mixed_precision: str = "no", accumulation: int = 1, sharded: bool = False, report_to: Sequence[str] = (),
        folder: Path | None = None,
    ) -> Devices:  # fmt: skip
        """As `accelerate launch` has set this process up; without it, alone on the best device there is.

        `mixed_precision`: `no` or `bf16`; float16 would need its losses scaled and isn't offered. `report_to`: of
        `TRACKERS`; their files go to `folder`. Raises `SettingError` for what isn't known or isn't installed.
        """
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        if mixed_precision not in ("no", "bf16"):
            raise SettingError(f"mixed_precision={mixed_precision!r} is not known: 'no' or 'bf16'.")
        for name in report_to:
            if name not in TRACKERS:
                raise SettingError(f"report_to={name!r} is not known: {', '.join(TRACKERS)} are.")
        # accelerate keeps one state a process and refuses another precision; a second training may want one.
        AcceleratorState._reset_state()  # pyright: ignore[reportPrivateUsage]
        try:
            accelerator = Accelerator(
                mixed_precision=mixed_precision,
                log_with=list(report_to) or None,
                project_dir=None if folder is None else str(folder),
            )
        except ImportError as e:
            raise SettingError(f"report_to={list(report_to)!r}: {e}. pip install {' '.join(report_to)}.") from e
        return cls(accelerator, accumulation, sharded)

    @property
    def rank(self) -> int:
        """This process's number, 0 the main one's."""
        return 0 if self._accelerator is None else int(self._accelerator.process_index)

    @property
    def processes(self) -> int:
        """How many share the work."""
        return 1 if self._accelerator is None else int(self._accelerator.num_processes)

    @property
    def main(self) -> bool:
        """Whether this process writes what all have made."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return torch.device("cpu") if self._accelerator is None else self._accelerator.device

    @property
    def whole(self) -> int:
        """Parts of a step, all processes' together."""
        return self.processes * self._accumulation

    @property
    def parts(self) -> range:
        """Numbers of this process's parts of each step."""
        return range(self.rank * self._accumulation, (self.rank + 1) * self._accumulation)

    def place(self, network: nn.Module, again: bool = False) -> nn.Module:
        """Move a network here; in place. Sharded, each process holds its share of every block from now on.

        `again`: gradients pass through it more than once a step; then blocks, once gathered, stay whole until `rest`.
        """
        if self._accelerator is not None:
            network.to(self.device)
        if not self._sharded:
            return network
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.processes,))
        for name in BLOCKS:
            for block in getattr(network, name, None) or ():
                fully_shard(block, mesh=mesh, reshard_after_forward=not again)
        root: Any = fully_shard(network, mesh=mesh, reshard_after_forward=not again)
        root.set_reshard_after_backward(not again)
        return network

    def rest(self, networks: Iterable[nn.Module]) -> None:
        """Back to shares, before optimizers step: what forward passes gathered would be out of date after."""
        if self._sharded:
            from torch.distributed.fsdp import FSDPModule

            for network in networks:
                for module in network.modules():
                    if isinstance(module, FSDPModule):
                        module.reshard()

    def gathered(self, network: nn.Module) -> nn.Module:
        """Return a sharded network as a plain one on the CPU, in every process (all must ask); others as they are."""
        if not self._sharded:
            return network
        from torch.distributed.fsdp import FSDPModule

        state = {k: whole_tensor(v.detach()).cpu() for k, v in network.state_dict().items()}
        plain: Any = next(c for c in type(network).__mro__ if not issubclass(c, FSDPModule))
        made = plain.from_config(network.config)
        made.load_state_dict(state)
        return made

    def autocast(self) -> AbstractContextManager[Any]:
        """In which losses are computed; no cast without mixed precision."""
        return nullcontext() if self._accelerator is None else self._accelerator.autocast()

    def backward(self, value: Tensor) -> None:
        """Add a part's share to the gradients."""
        (value if self._accumulation == 1 else value / self._accumulation).backward()

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Mean of the gradients over the processes; those of sharded networks have been averaged on the way."""
        if self.processes == 1 or self._sharded:
            return
        several = list(parameters)
        for p in several:
            # A process whose loss didn't reach a parameter must still take part, or the others wait for ever.
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        for bucket in _buckets([p.grad for p in several if p.grad is not None]):
            flat = torch.cat([g.flatten() for g in bucket])
            dist.all_reduce(flat)
            flat /= self.processes
            for g, mean in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                g.copy_(mean.view_as(g))

    def mean(self, value: Tensor) -> float:
        """Mean of a scalar over the processes; no number if one of them has none."""
        if self.processes > 1:
            value = value.detach().clone().double()
            dist.all_reduce(value)
            value /= self.processes
        return float(value)

    def agree(self, flag: bool) -> bool:
        """Return the main process's word, for decisions that depend on its clock."""
        if self.processes == 1:
            return flag
        word = torch.tensor(float(flag), device=self.device)
        dist.broadcast(word, 0)
        return bool(word)

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.processes > 1:
            dist.barrier()

    def first(self) -> AbstractContextManager[Any]:
        """Return the main process passes through the block first: what it writes, the others find."""
        return nullcontext() if self._accelerator is None else self._accelerator.main_process_first()

    def start_trackers(self, config: Mapping[str, Any]) -> None:
        """Begin a run in each tracker; nothing without trackers."""
        if self._accelerator is not None and self._accelerator.log_with:
            plain = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in config.items()}
            self._accelerator.init_trackers("allaprima", config=plain)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Tell the trackers."""
        if self._accelerator is not None and self._accelerator.log_with:
            self._accelerator.log(dict(values), step=step)

    def log_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Show the trackers a picture `(H, W, 3)` uint8."""
        for tracker in self._accelerator.trackers if self._accelerator is not None and self.main else ():
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: picture[None]}, step=step, **layout)

    def end_trackers(self) -> None:
        """Write what trackers still hold."""
        if self._accelerator is not None and self._accelerator.log_with:
            self._accelerator.end_training()


def _buckets(tensors: Sequence[Tensor], limit: int = 2**24) -> Iterable[list[Tensor]]:
    """Tensors of one dtype in a row, about `limit` numbers together: few messages, none of them huge."""
    bucket: list[Tensor] = []
    for t in tensors:
        if bucket and (t.dtype != bucket[0].dtype or sum(b.numel() for b in bucket) + t.numel() > limit):
            yield bucket
            bucket = []
        bucket.append(t)
    if bucket:
        yield bucket


def whole_tensor(value: Tensor) -> Tensor:
    """Return a sharded tensor's whole value (every process must ask for it); others as they are."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value  # pyright: ignore[reportAttributeAccessIssue]


def share_of(value: Tensor, like: Tensor) -> Tensor:
    """Return this process's share of `value`, sharded as `like` is; as it is if `like` is whole."""
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        raise TrainingError(f"a tensor of type {type(like).__name__} can't be restored: plain or sharded ones are due.")
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
