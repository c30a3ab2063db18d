"""The warm-up of EMA copies: a slow average begins with a short history, so that it forgets the random start."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from allaprima.distill.loop import LoopConfig, train

STEPS = 40
CONFIG = LoopConfig(max_train_steps=STEPS, train_batch_size=1, learning_rate=0.1, warmup_steps=1, log_every=100)


class Point(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))


def trained(folder, decay):
    """The averaged weights, and the weights before the first and after every step."""
    weights = []

    def loss(model, emas, g):
        weights.append(model.w.detach().clone())
        return ((model.w - torch.tensor([1.0, 2.0, 3.0])) ** 2).sum()

    model = Point()
    emas = train(model, loss, replace(CONFIG, emas={"use": decay}), folder, {"name": "point"})
    return emas["use"].w.detach(), [*weights, model.w.detach()]


def average(weights, decays):
    mean = weights[0].double()
    for w, d in zip(weights[1:], decays, strict=True):
        mean = d * mean + (1 - d) * w.double()
    return mean


@pytest.mark.parametrize("decay", [0.995, 0.999, 0.9999])
def test_a_slow_average_warms_up(tmp_path, decay):
    ema, weights = trained(tmp_path, decay)
    warm = average(weights, [min(decay, (k + 1) / (k + 10)) for k in range(STEPS)])
    assert torch.allclose(ema.double(), warm, atol=1e-5)
    # Without a warm-up most of such an average is still the start, here 0.
    cold = average(weights, [decay] * STEPS)
    assert float((ema / weights[-1]).min()) > 0.75 > 0.2 > float((cold / weights[-1]).max())


def test_a_quick_average_needs_no_warm_up(tmp_path):
    ema, weights = trained(tmp_path, 0.9)
    assert torch.allclose(ema.double(), average(weights, [0.9] * STEPS), atol=1e-5)
