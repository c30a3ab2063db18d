"""Heun, Euler and multistep consistency against diffusers' schedulers of those names, after every evaluation."""

import diffusers
import pytest
import torch
from diffusers.schedulers import scheduling_lcm
from sampling import sample

from allaprima.core.seeds import noise_batch
from allaprima.core.types import Condition
from allaprima.diffusion.predictions import to_x0
from allaprima.diffusion.schedules import DiscreteVP, Flow
from allaprima.diffusion.solvers import make_solver
from allaprima.diffusion.solvers.solver import Step

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
VP = DiscreteVP.from_config(SD)


def net(x):
    return torch.tanh(1.3 * x) * 0.7 + 0.1


def start():
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def times(*values):
    return [torch.full((2,), v, dtype=torch.float64) for v in values]


def distance(a, b):
    """Largest difference, relative to the largest entry."""
    return float((a - b).abs().max() / b.abs().max())


def walk(name, schedule, plan, x, predict):
    """Samples after each evaluation; `predict(x, p)` says x0."""
    solver = make_solver(name, schedule)
    state, out = solver.init(x), []
    for p in plan:
        t, s = times(p.t, p.s)
        x, state = solver.step(x, predict(x, p), t, s, state, None, torch.full((2,), p.phase))
        out.append(x)
    return out


def theirs_in_ve(scheduler, x):
    """Samples after each evaluation in diffusers' coordinates y = x / alpha, and the rho = sigma / alpha they are at."""
    y, out = x, []
    for i, t in enumerate(scheduler.timesteps):
        y = scheduler.step(net(scheduler.scale_model_input(y, t)), t, y).prev_sample
        out.append((y, float(scheduler.sigmas[i + 1])))
    return out


def to_ve(x, s):
    (v,) = times(s)
    return x / VP.alpha(v).to(x.dtype).reshape(-1, 1, 1, 1)


def rho(t):
    (v,) = times(t)
    return float((VP.sigma(v) / VP.alpha(v))[0])


@pytest.mark.parametrize("n", [1, 3, 10, 25])
def test_euler_is_diffusers(n):
    scheduler = diffusers.EulerDiscreteScheduler(**SD, prediction_type="sample", timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(n)
    plan = make_solver("euler", VP).timesteps(n)
    assert scheduler.timesteps.tolist() == [p.t for p in plan]
    ours = walk("euler", VP, plan, start(), lambda x, p: net(x))
    theirs = theirs_in_ve(scheduler, to_ve(start(), plan[0].t))
    for x, p, (y, r) in zip(ours, plan, theirs, strict=True):
        assert r == pytest.approx(rho(p.s), rel=1e-5)
        assert distance(to_ve(x, p.s), y) < 1e-5


@pytest.mark.parametrize("n", [1, 3, 9, 19, 49, 2, 10, 20])
def test_heun_is_diffusers(n):
    """An odd n is diffusers' plan of (n + 1) / 2 times; an even one is an Euler step before that."""
    plan = make_solver("heun", VP).timesteps(n)
    ours = walk("heun", VP, plan, start(), lambda x, p: net(x))
    x, odd = start(), plan
    if n % 2 == 0:
        (x,) = walk("euler", VP, plan[:1], start(), lambda x, p: net(x))
        assert distance(ours[0], x) < 1e-5
        ours, odd = ours[1:], plan[1:]
    scheduler = diffusers.HeunDiscreteScheduler(**SD, prediction_type="sample")
    scheduler.set_timesteps(timesteps=[int(p.t) for p in odd if p.phase == 0])
    assert scheduler.timesteps.tolist() == [p.t for p in odd]
    theirs = theirs_in_ve(scheduler, to_ve(x, odd[0].t))
    for x, p, (y, r) in zip(ours, odd, theirs, strict=True):
        assert r == pytest.approx(rho(p.s), rel=1e-5)
        assert distance(to_ve(x, p.s), y) < 1e-5


@pytest.mark.parametrize("shift", [1.0, 3.0])
# Fewer times make a long correction at t = .001, where float32 (diffusers' too) finds the velocity to 1e-4: 2e-5 for n = 2.
@pytest.mark.parametrize("n", [5, 10, 25])
def test_heun_is_diffusers_on_flows(n, shift):
    flow = Flow(shift)
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(n)

    def velocity(x):
        return torch.tanh(x) * 0.4

    # Its own times (shifted twice), as our steps: predict, correct, ..., and one Euler step to the clean end.
    grid = [1.0, *(float(t) / 1000 for t in scheduler.timesteps[1::2])]
    plan = [Step(t, s, phase) for t, s in zip(grid, grid[1:], strict=False) for t, s, phase in ((t, s, 0), (s, s, 1))]
    plan.append(Step(grid[-1], 0.0))

    def predict(x, p):
        (t,) = times(p.t)
        return to_x0("flow_prediction", velocity(x), x, flow.alpha(t), flow.sigma(t))

    ours = walk("heun", flow, plan, start(), predict)
    y = start()
    assert len(scheduler.timesteps) == len(plan) == 2 * n - 1
    for x, p, t in zip(ours, plan, scheduler.timesteps, strict=True):
        assert float(t) / 1000 == pytest.approx(p.t, abs=1e-6)
        y = scheduler.step(velocity(y), t, y).prev_sample
        assert distance(x, y) < 1e-5


@pytest.mark.parametrize("n", [1, 2, 4, 5, 8])
def test_consistency_is_diffusers_lcm(n, monkeypatch):
    """LCM's c_skip is under 1e-6 at these times (timestep_scaling 10), so that its f is our x0; the noise is the same."""
    drawn = []

    def fresh(shape, **kwargs):
        drawn.append(len(drawn))
        return noise_batch([0, 1], "student", [drawn[-1]] * 2, shape[1:])

    monkeypatch.setattr(scheduling_lcm, "randn_tensor", fresh)
    scheduler = diffusers.LCMScheduler(**SD, prediction_type="sample", clip_sample=False)
    plan = make_solver("consistency", VP).timesteps(n)
    scheduler.set_timesteps(timesteps=[int(p.t) for p in plan])
    y = start()
    solver, x = make_solver("consistency", VP), start()
    for i, (p, t) in enumerate(zip(plan, scheduler.timesteps, strict=True)):
        assert scheduler.get_scalings_for_boundary_condition_discrete(int(t)) == pytest.approx((0, 1), abs=1e-6)
        y = scheduler.step(net(y), t, y).prev_sample
        x, _ = solver.step(x, net(x), *times(p.t, p.s), {}, noise_batch([0, 1], "student", [i] * 2, x.shape[1:]))
        assert distance(x, y) < 1e-5
    # n - 1 draws: the last jump's x0 is the result, there as here.
    assert len(drawn) == n - 1
    loop = sample(lambda x, t, c: net(x), make_solver("consistency", VP), start(), Condition({}), n, purpose="student")
    assert distance(loop, y) < 1e-5


def test_a_sixth_evaluation_would_leave_noise():
    """The paper's release goes on to t = 1 with fresh noise and multiplies what the network says there by zero."""
    plan = make_solver("consistency", VP).timesteps(5)
    assert (len(plan), plan[-1].s) == (5, VP.t_clean)
    x0, noise = torch.zeros(2, 4, 64, 64), torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    left, _ = make_solver("consistency", VP).step(x0, x0, *times(181.0, 1.0), {}, noise)
    assert float(left.std()) == pytest.approx(0.041, abs=0.001)
