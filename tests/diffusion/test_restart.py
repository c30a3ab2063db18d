"""Restart has no scheduler in diffusers: its samples against exact draws of a mixture, and the wrong noise against both."""

import functools

import pytest
import torch

from allaprima.diffusion.mixture import MixtureDenoiser
from allaprima.diffusion.schedules import DiscreteVP, Flow
from allaprima.diffusion.solvers.restart import Restart

VP = DiscreteVP.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
SCHEDULES = {"vp": VP, "flow": Flow()}
CASES = [("flow", 0), ("flow", 1), ("flow", 2), ("vp", 0)]
N, LOW, HIGH = 4000, 0.5, 2.0


def mixture(schedule):
    return MixtureDenoiser(schedule, torch.tensor([[-2.0], [1.0]]), torch.tensor([0.3, 0.5]), torch.tensor([0.3, 0.7]))


def exact(seed):
    return mixture(VP).sample(N, torch.Generator().manual_seed(seed))


def apart(a, b):
    """Mean, spread, weight of the left mode and Wasserstein-1 distance, as differences between two samples."""
    return {
        "mean": float((a.mean() - b.mean()).abs()),
        "std": float((a.std() - b.std()).abs()),
        "weight": float(((a < -0.5).double().mean() - (b < -0.5).double().mean()).abs()),
        "w1": float((a.sort(0).values - b.sort(0).values).abs().mean()),
    }


@functools.cache
def floor():
    """What two exact samples of this size differ by: the largest of ten pairs."""
    pairs = [apart(exact(1000 + i), exact(2000 + i)) for i in range(10)]
    return {k: max(p[k] for p in pairs) for k in pairs[0]}


def restarted(schedule, seed, factor=1.0):
    """A sample after two restarts, from the exact distribution at the first time, with noise `factor` times too large."""
    solver, denoiser = Restart(schedule, LOW, HIGH, repeats=2, points=24), mixture(schedule)
    plan, g = solver.timesteps(120), torch.Generator().manual_seed(seed)
    assert sum(p.noise_to is not None for p in plan) == 2

    def draw():
        return torch.randn(N, 1, generator=g, dtype=torch.float64)

    def times(v):
        return torch.full((N,), float("nan") if v is None else v, dtype=torch.float64)

    first = times(plan[0].t)
    x = schedule.alpha(first)[:, None] * denoiser.sample(N, g) + schedule.sigma(first)[:, None] * draw()
    for p in plan:
        noise = None if p.noise_to is None else factor * draw()
        t = times(p.t)
        x, _ = solver.step(x, denoiser(x, t), t, times(p.s), {}, noise, None, times(p.noise_to))
    return x


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_a_restart_keeps_the_distribution(name, seed):
    # Half as much again as sampling alone explains: DDIM of finitely many steps narrows a little.
    found = apart(restarted(SCHEDULES[name], seed), exact(seed))
    assert all(found[k] < 1.5 * floor()[k] for k in found), (found, floor())


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_noise_of_the_wrong_variance_does_not(name, seed):
    """`rho_max - rho_min` is not the noise that is missing: `sqrt(rho_max^2 - rho_min^2)` is."""
    wrong = (HIGH - LOW) / (HIGH**2 - LOW**2) ** 0.5
    found = apart(restarted(SCHEDULES[name], seed, wrong), exact(seed))
    assert found["w1"] > 1.5 * floor()["w1"]
    assert found["std"] > 3 * floor()["std"]
