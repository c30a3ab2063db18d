"""The consistency loss against truth: it vanishes, at the solver's order, at the exact map of Gaussian data."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from allaprima.core.errors import TrainingError
from allaprima.diffusion.mixture import MixtureDenoiser, gaussian_flow
from allaprima.diffusion.schedules import DiscreteVP
from allaprima.distill.checkpoint import read_meta
from allaprima.distill.loop import LoopConfig, ema_update, train
from allaprima.distill.losses.consistency import consistency_loss, endpoint_loss

VP = DiscreteVP.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
MEAN, STD = 0.7, 0.5
CLEAN = VP.t_clean


def exact_map(x, t, w):
    return gaussian_flow(x, t, torch.full_like(t, CLEAN), MEAN, STD, VP)


def loss(student, points):
    g = torch.Generator().manual_seed(0)
    teacher = MixtureDenoiser(VP, torch.full((1, 1), MEAN), torch.tensor([STD]))
    x0 = MEAN + STD * torch.randn(4000, 1, generator=g, dtype=torch.float64)
    eps = torch.randn(4000, 1, generator=g, dtype=torch.float64)
    index = torch.randint(points, (4000,), generator=g)
    w = torch.ones(4000)
    return float(
        consistency_loss(student, student, lambda x, t, w: teacher(x, t), VP, VP.timesteps(points), x0, eps, index, w)
    )


def test_the_exact_map_is_the_fixed_point_at_the_solvers_order():
    few, many = loss(exact_map, 25), loss(exact_map, 100)
    # The squared local error of a first-order step falls with the fourth power of the step, averaged over times.
    assert many < few / 30
    assert many < 1e-5


def test_other_maps_are_not():
    assert loss(lambda x, t, w: 0.9 * exact_map(x, t, w), 100) > 100 * loss(exact_map, 100)


def test_the_boundary_asks_nothing_of_the_network():
    def never(x, t, w):
        assert float(t.min()) >= 1
        return x

    loss(never, 50)


def test_the_endpoint_loss_has_the_same_fixed_point():
    g = torch.Generator().manual_seed(0)
    x, t = torch.randn(500, 1, generator=g, dtype=torch.float64), torch.full((500,), 981.0, dtype=torch.float64)
    teacher = MixtureDenoiser(VP, torch.full((1, 1), MEAN), torch.tensor([STD]))
    s = torch.full((500,), 481.0, dtype=torch.float64)
    middle, end = gaussian_flow(x, t, s, MEAN, STD, VP), exact_map(x, t, None)
    assert float(endpoint_loss(exact_map, middle, s, torch.ones(500), end)) < 1e-12
    # The denoiser is not the consistency map: it shrinks what it isn't sure of.
    assert float(endpoint_loss(lambda x, t, w: teacher(x, t), middle, s, torch.ones(500), end)) > 1e-3


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(3))

    def forward(self):
        return self.a


def quadratic(model, emas, g):
    return ((model() - torch.tensor([1.0, 2.0, 3.0]) + 0.1 * torch.randn(3, generator=g)) ** 2).sum()


CONFIG = LoopConfig(
    max_train_steps=60, train_batch_size=1, learning_rate=0.1, warmup_steps=1, emas={"use": 0.9}, log_every=5
)


def test_a_resumed_training_equals_an_uninterrupted_one_to_the_bit(tmp_path):
    whole = Line()
    emas = train(whole, quadratic, CONFIG, tmp_path / "a", {"name": "line"})

    class Killed(Exception):
        pass

    calls = 0

    def killed(model, emas, g):
        nonlocal calls
        calls += 1
        if calls == 31:
            raise Killed
        return quadratic(model, emas, g)

    # A checkpoint after every step, then death in the middle.
    often = replace(CONFIG, checkpoint_seconds=0.0)
    with pytest.raises(Killed):
        train(Line(), killed, often, tmp_path / "b", {"name": "line"})
    resumed = Line()
    emas_b = train(resumed, quadratic, often, tmp_path / "b", {"name": "line"})
    assert torch.equal(whole.a, resumed.a)
    assert torch.equal(emas["use"].a, emas_b["use"].a)
    steps = [row.split(",")[0] for row in (tmp_path / "b" / "curve.csv").read_text().splitlines()]
    assert steps == [row.split(",")[0] for row in (tmp_path / "a" / "curve.csv").read_text().splitlines()]


def test_another_recipe_does_not_resume(tmp_path):
    train(Line(), quadratic, CONFIG, tmp_path, {"name": "line"})
    with pytest.raises(TrainingError, match=r"recipe\.name was 'line', now 'curve'"):
        train(Line(), quadratic, CONFIG, tmp_path, {"name": "curve"})


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    """A killed and a full run resume alike: the file is whole or it is the one before."""
    often = replace(CONFIG, checkpoint_seconds=0.0)
    whole = train(Line(), quadratic, CONFIG, tmp_path / "a", {"name": "line"})
    calls = []

    def full(fd):
        calls.append(fd)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr("os.fsync", full)
        with pytest.raises(TrainingError, match=r"No space left on device.*The last good one stays"):
            train(Line(), quadratic, often, tmp_path / "b", {"name": "line"})
    assert not list((tmp_path / "b").glob("*.part"))
    assert read_meta(tmp_path / "b")["step"] == 3
    again = train(Line(), quadratic, often, tmp_path / "b", {"name": "line"})
    assert torch.equal(whole["use"].a, again["use"].a)


def test_a_loss_that_is_no_number_stops_the_training(tmp_path):
    with pytest.raises(TrainingError, match="nan at step 0"):
        train(Line(), lambda m, e, g: m().sum() * math.nan, CONFIG, tmp_path, {})


def test_ema_is_the_running_mean():
    model, ema = Line(), Line()
    model.a.data.fill_(1.0)
    before = copy.deepcopy(ema)
    ema_update(ema, model, 0.9)
    assert torch.allclose(ema.a, 0.9 * before.a + 0.1)
