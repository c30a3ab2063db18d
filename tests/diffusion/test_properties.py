"""What holds for any number: round trips, inverses, evaluations that are counted, and an end that is x0 exactly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling import sample

from allaprima.core.types import Condition
from allaprima.diffusion.mixture import MixtureDenoiser
from allaprima.diffusion.predictions import PREDICTIONS, from_x0, to_x0
from allaprima.diffusion.schedules import DiscreteVP, Flow
from allaprima.diffusion.solvers import SOLVERS, make_solver

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
VPS = {k: DiscreteVP.from_config({**SD, "beta_schedule": k}) for k in ("linear", "scaled_linear", "squaredcos_cap_v2")}
VP = VPS["scaled_linear"]
shifts = st.floats(0.2, 8)
schedules = st.one_of(st.just(VP), shifts.map(Flow))
ENDS = [name for name in SOLVERS if name != "tcd"]
"""TCD's last move is to time 0, as diffusers has it: not to the clean end."""
shares = st.one_of(st.none(), st.floats(0.001, 1))
"""Where to start, as a share of the largest time; None is pure noise."""


@pytest.mark.parametrize("kind", PREDICTIONS)
@settings(deadline=None, max_examples=50)
@given(a=st.floats(0.05, 2), s=st.floats(0.05, 2), seed=st.integers(0, 1000))
def test_predictions_come_back_for_any_alpha_and_sigma(kind, a, s, seed):
    g = torch.Generator().manual_seed(seed)
    x0, eps = (torch.randn(2, 3, generator=g, dtype=torch.float64) for _ in range(2))
    alpha, sigma = (torch.tensor([v, 1.0], dtype=torch.float64) for v in (a, s))
    x_t = alpha[:, None] * x0 + sigma[:, None] * eps
    output = from_x0(kind, x0, x_t, alpha, sigma)
    meaning = {
        "epsilon": eps,
        "v_prediction": alpha[:, None] * eps - sigma[:, None] * x0,
        "sample": x0,
        "flow_prediction": eps - x0,
    }[kind]
    assert torch.allclose(output, meaning, rtol=1e-9, atol=1e-9)
    assert torch.allclose(to_x0(kind, output, x_t, alpha, sigma), x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", VPS)
@settings(deadline=None, max_examples=50)
@given(variance=st.floats(0.01, 0.99))
def test_time_of_variance_has_that_variance(kind, variance):
    t = torch.tensor([VPS[kind].time_of_variance(variance)], dtype=torch.float64)
    assert float(VPS[kind].sigma(t) ** 2) == pytest.approx(variance, abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(shift=shifts, variance=st.floats(0.001, 0.999))
def test_time_of_variance_of_a_flow_has_the_ratio_of_a_vp_sample(shift, variance):
    flow = Flow(shift)
    t = torch.tensor([flow.time_of_variance(variance)], dtype=torch.float64)
    assert float((flow.sigma(t) / flow.alpha(t)) ** 2) == pytest.approx(variance / (1 - variance), rel=1e-9)


@pytest.mark.parametrize("name", SOLVERS)
@settings(deadline=None, max_examples=60)
@given(schedule=schedules, n=st.integers(1, 60), share=shares)
def test_a_plan_of_n_is_n_evaluations_in_a_row(name, schedule, n, share):
    start = None if share is None else share * schedule.t_max
    plan = make_solver(name, schedule).timesteps(n, start)
    assert len(plan) == n
    assert plan[-1].s == (schedule.t_clean if name in ENDS else 0)
    if start is not None:
        assert plan[0].t == start
    # Each evaluation is made where the last move ended.
    assert [p.s if p.noise_to is None else p.noise_to for p in plan[:-1]] == [p.t for p in plan[1:]]


@pytest.mark.parametrize("name", ENDS)
@settings(deadline=None, max_examples=8)
@given(schedule=schedules, n=st.integers(1, 60), share=shares, mean=st.floats(-3, 3, width=32))
def test_data_of_one_point_is_found_exactly(name, schedule, n, share, mean):
    exact = MixtureDenoiser(schedule, torch.full((1, 2), mean), torch.zeros(1))
    x = torch.randn(2, 2, generator=torch.Generator().manual_seed(n))
    start = None if share is None else share * schedule.t_max
    out = sample(exact, make_solver(name, schedule), x, Condition({}), n, start)
    assert torch.equal(out, torch.full((2, 2), mean))
