"""Angles, flow times and VP times: one scale of noise; SCM against diffusers; grids with a top and a last time."""

import math

import diffusers
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from allaprima.core.errors import SettingError
from allaprima.core.seeds import noise_batch
from allaprima.diffusion.noising import Strength, Variance, add_noise, start_time
from allaprima.diffusion.predictions import to_x0, v_by_flow
from allaprima.diffusion.schedules import DiscreteVP, Flow, TrigFlow
from allaprima.diffusion.solvers import make_solver

TRIG = TrigFlow()
VP = DiscreteVP.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})


def at(*times):
    return torch.tensor(times, dtype=torch.float64)


def ratio(schedule, t):
    return float(schedule.sigma(at(t)) / schedule.alpha(at(t)))


def same_noise(t, source, target):
    """The time of `target` that has the signal-to-noise ratio of `source` at `t`."""
    r = ratio(source, t)
    return target.time_of_variance(r**2 / (1 + r**2))


def net(x, t):
    """A network that depends on the time it is told."""
    return torch.tanh(1.3 * x + t) * 0.7 + 0.1


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
def test_consistency_on_angles_is_diffusers_scm(n, sigma_data, monkeypatch):
    """After every evaluation, to 1e-5; theirs are our samples times sigma_data."""
    place = []

    def fresh(shape, **kwargs):
        place.append(len(place))
        return noise_batch([0, 1], "student", [place[-1]] * 2, shape[1:])

    monkeypatch.setattr("diffusers.schedulers.scheduling_scm.randn_tensor", fresh)
    scheduler = diffusers.SCMScheduler(sigma_data=sigma_data)
    scheduler.set_timesteps(n, intermediate_timesteps=1.3 if n == 2 else None)
    scheduler.set_begin_index(0)
    solver = make_solver("consistency", TRIG)
    plan = solver.timesteps(n)
    assert [p.t for p in plan] == pytest.approx(scheduler.timesteps[:-1].tolist(), abs=1e-6)
    assert (len(plan), plan[-1].s) == (n, 0)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    y = x * sigma_data
    for i, (p, t) in enumerate(zip(plan, scheduler.timesteps, strict=False)):
        out = net(y / sigma_data, float(t))
        y, clean = scheduler.step(out * sigma_data, t, y, return_dict=False)
        mine = to_x0("v_prediction", net(x, p.t), x, TRIG.alpha(at(p.t, p.t)), TRIG.sigma(at(p.t, p.t)))
        torch.testing.assert_close(mine, clean / sigma_data, atol=1e-5, rtol=0)
        x, _ = solver.step(x, mine, at(p.t, p.t), at(p.s, p.s), {}, noise_batch([0, 1], "student", [i] * 2, x.shape[1:]))
        torch.testing.assert_close(x, y / sigma_data, atol=1e-5, rtol=0)


@given(st.floats(0.01, 1.55))
def test_an_angle_has_the_noise_of_its_flow_time(t):
    s = same_noise(t, TRIG, Flow(3.0))
    assert s == pytest.approx(math.sin(t) / (math.sin(t) + math.cos(t)), rel=1e-9)
    assert ratio(Flow(), s) == pytest.approx(ratio(TRIG, t), rel=1e-9) == pytest.approx(math.tan(t))
    assert same_noise(s, Flow(), TRIG) == pytest.approx(t, rel=1e-9) == pytest.approx(math.atan(s / (1 - s)))


@given(st.floats(5, 990))
def test_vp_times_have_theirs_too(t):
    for other in (TRIG, Flow()):
        there = same_noise(t, VP, other)
        assert ratio(other, there) == pytest.approx(ratio(VP, t), rel=1e-6)
        assert same_noise(there, other, VP) == pytest.approx(t, abs=1e-4)


@pytest.mark.parametrize("v", [0.05, 0.4, 0.75])
def test_a_variance_leaves_as_much_of_a_draft_on_every_schedule(v):
    """On Gaussian drafts: what is measured of signal and noise after the rollback is the paper's (1 - v) / v."""
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(1, 300, 300, generator=g), torch.randn(1, 300, 300, generator=g)
    for schedule in (VP, Flow(3.0), TRIG):
        x = add_noise(x0, eps, at(start_time(schedule, Variance(v))), schedule).double()
        signal, noise = float((x * x0).mean() / (x0 * x0).mean()), float((x * eps).mean() / (eps * eps).mean())
        assert (signal / noise) ** 2 == pytest.approx((1 - v) / v, rel=0.05)


def test_clean_and_pure_noise_have_no_partner():
    for t in (0.0, 1.0):
        with pytest.raises(SettingError, match="variance"):
            same_noise(t, Flow(), TRIG)


@given(st.floats(0.02, 1.5))
def test_a_flow_network_says_v(t):
    """Given the exact velocity at the flow's sample, the result is alpha eps - sigma x0."""
    g = torch.Generator().manual_seed(1)
    x0, eps = (torch.randn(1, 3, 4, 4, generator=g, dtype=torch.float64) for _ in range(2))
    alpha, sigma = TRIG.alpha(at(t)), TRIG.sigma(at(t))
    x_t = alpha * x0 + sigma * eps
    told = []

    def velocity(x, s):
        told.append(float(s))
        torch.testing.assert_close(x, (1 - s) * x0 + s * eps, atol=1e-12, rtol=0)
        return eps - x0

    torch.testing.assert_close(v_by_flow(velocity, x_t, alpha, sigma), alpha * eps - sigma * x0, atol=1e-12, rtol=0)
    assert told == pytest.approx([same_noise(t, TRIG, Flow())])


@pytest.mark.parametrize("n", [4, 14, 20])
def test_a_grid_from_the_top_is_dpm_solvers_flow_sigmas(n):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction", algorithm_type="dpmsolver++"
    )
    scheduler.set_timesteps(n)
    flow = Flow(3.0, top=0.999)
    assert flow.timesteps(n) == pytest.approx(scheduler.sigmas[:-1].tolist(), abs=1e-7)
    assert flow.t_max == flow.timesteps(n)[0]
    assert flow.timesteps(n // 2, flow.time_of_strength(0.5)) == pytest.approx(flow.timesteps(n)[n // 2 :], abs=1e-12)


def euler_sigmas(n, shift, terminal):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, shift_terminal=terminal, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192
    )
    scheduler.set_timesteps(sigmas=[(n - i) / n for i in range(n)], mu=math.log(shift))
    return scheduler.sigmas[:-1].tolist()


@pytest.mark.parametrize("shift", [1.0, 2.3])
@pytest.mark.parametrize("n", [2, 5, 50])
def test_a_stretched_grid_is_diffusers(n, shift):
    flow = Flow(shift, terminal=0.02)
    due = euler_sigmas(n, shift, 0.02)
    assert flow.timesteps(n) == pytest.approx(due, abs=1e-6)
    assert (flow.timesteps(n)[0], flow.timesteps(n)[-1]) == pytest.approx((1, 0.02))


@pytest.mark.parametrize(("n", "whole"), [(5, 10), (30, 50), (2, 4), (1, 4)])
def test_the_end_of_a_stretched_grid_by_its_strength(n, whole):
    flow = Flow(2.3, terminal=0.02)
    start = start_time(flow, Strength(n / whole), n)
    if n > 1:
        assert flow.timesteps(n, start) == pytest.approx(euler_sigmas(whole, 2.3, 0.02)[-n:], abs=1e-6)
    else:
        assert flow.timesteps(1, start) == [start]


@given(st.integers(1, 60), st.floats(0.001, 0.999), st.sampled_from([None, 0.02, 0.3]), st.floats(0.3, 5))
@example(2, 0.30000000000000004, 0.3, 1.0)
@example(60, 0.3 * (1 + 2e-9), 0.3, 5.0)
@example(60, 0.3 * (1 + 2e-9), 0.3, 0.3)
def test_n_steps_from_anywhere(n, start, terminal, shift):
    grid = Flow(shift, terminal=terminal).timesteps(n, start)
    assert (len(grid), grid[0]) == (n, start)
    assert all(a > b > 0 for a, b in zip(grid, grid[1:], strict=False))


def test_one_step_of_a_stretched_grid_stays_a_number():
    assert Flow(2.3, terminal=0.02).timesteps(1) == [1.0]


def test_numbers_out_of_range_are_refused():
    for bad in ({"top": 0.0}, {"top": 1.1}, {"terminal": 0.0}, {"terminal": 1.0}):
        with pytest.raises(SettingError, match=next(iter(bad))):
            Flow(1.0, **bad)
    with pytest.raises(SettingError, match="steps=0"):
        TRIG.timesteps(0)
    with pytest.raises(SettingError, match="variance"):
        TRIG.time_of_variance(1.0)
