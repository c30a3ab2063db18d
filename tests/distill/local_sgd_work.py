"""What `test_local_sgd` runs in processes of its own."""

import json
import os
import time

import torch
from torch import nn

from allaprima.distill.loop import LoopConfig, train


def meet(folder, devices):
    """Five steps in which each process only counts its rank up; they meet at every second."""
    weight, told = nn.Parameter(torch.tensor([float(devices.rank)])), []
    for _ in range(5):
        loss = devices.mean(torch.tensor(float(devices.rank)))
        devices.average([weight])
        told.append([float(weight), loss, devices.agree(devices.rank == 0)])
        weight.data += devices.rank
    (folder / f"{devices.rank}.json").write_text(json.dumps(told))


class Point(nn.Module):
    """Two numbers."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0, -2.0]))


def descend(folder, devices):
    """To the middle of noisy points about (1, 1): a training as the recipes have it."""
    config = LoopConfig(400, 8, 0.05, warmup_steps=1, weight_decay=0.0, emas={"use": 0.9}, log_every=100)

    def loss(model, emas, g):
        return (model.w - 1 - 0.1 * torch.randn(8, 2, generator=g)).square().mean()

    emas = train(Point(), loss, config, folder / f"run-{devices.rank}", {}, devices=devices)
    (folder / f"{devices.rank}.json").write_text(json.dumps(emas["use"].w.tolist()))


def wait(folder, devices):
    """Until killed."""
    (folder / f"{devices.rank}.pid").write_text(str(os.getpid()))
    time.sleep(600)
