"""Training on several CPU cores by processes of one thread that average their weights every few steps.

Small networks lose more by sharing threads than they gain: two processes that train on their own and meet every few steps
(local SGD, arXiv 1805.09767) take more samples a second than one process of two threads, by far when something else runs.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from allaprima.core.errors import SettingError
from allaprima.distill.devices import Devices


class LocalSGD(Devices):
    """One of several processes whose weights, not gradients, are averaged, every `every` steps.

    The loop asks for `mean`, `average` and `agree` once a step, in this order; only every `every`-th step do the processes
    wait for each other. The same seed and number of processes give the same bits. A checkpoint holds the main process's
    weights and moments, so that a resumed training of several processes goes on from these, not to the bit.

    Args:
        every: Steps between two averages.
    """

    def __init__(self, every: int = 4) -> None:
        super().__init__()
        if every < 1:
            raise SettingError(f"every={every!r} is out of range: expected 1 or more steps between two averages.")
        self._every, self._step = every, 0

    @property
    def rank(self) -> int:
        """Number of this process, 0 for the main one."""
        return dist.get_rank() if dist.is_initialized() else 0

    @property
    def processes(self) -> int:
        """Number of processes."""
        return dist.get_world_size() if dist.is_initialized() else 1

    @property
    def _meets(self) -> bool:
        return self.processes > 1 and self._step % self._every == 0

    def mean(self, value: Tensor) -> float:
        """Return the loss, averaged over the processes where they meet."""
        self._step += 1
        return super().mean(value) if self._meets else float(value)

    @torch.no_grad()
    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the weights over the processes where they meet; gradients stay each process's own."""
        if not self._meets:
            return
        weights = [p.data for p in parameters]
        flat = torch.cat([w.reshape(-1) for w in weights])
        dist.all_reduce(flat)
        flat /= self.processes
        for weight, mean in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
            weight.copy_(mean.view_as(weight))

    def agree(self, flag: bool) -> bool:
        """Return the main process's word where the processes meet, else False; alone, `flag`."""
        if self.processes == 1:
            return flag
        return super().agree(flag) if self._meets else False


def _end_with(parent: int) -> None:
    """End this process when its parent has: a killed training must not go on in secret."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _enter(rank: int, work: Callable[..., Any], arguments: tuple[Any, ...], processes: int, port: int, every: int) -> None:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes)
    try:
        work(*arguments, LocalSGD(every))
    finally:
        dist.destroy_process_group()


def run_locally(work: Callable[..., Any], arguments: tuple[Any, ...], processes: int = 1, every: int = 4) -> None:
    """Run `work(*arguments, devices)` in one or several processes of one thread each.

    Args:
        work: A function at the top of a module, which a new process can import.
        arguments: Its arguments before `devices`; they are pickled for new processes.
        processes: How many.
        every: Steps between two averages of the weights.

    Raises:
        SettingError: If `processes` is not between 1 and the machine's number of cores.
    """
    if not 1 <= processes <= (os.cpu_count() or 1):
        raise SettingError(f"--processes {processes} is out of range: this machine has {os.cpu_count()} cores.")
    if processes == 1:
        torch.set_num_threads(1)
        work(*arguments, LocalSGD(every))
        return
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(_enter, (work, arguments, processes, port, every), nprocs=processes)
