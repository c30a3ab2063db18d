import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from allaprima.core.errors import SettingError
from allaprima.diffusion.noising import Strength, Variance, add_noise, start_time
from allaprima.diffusion.schedules import DiscreteVP, Flow

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
VP = DiscreteVP.from_config(SD)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_alphas_are_those_of_diffusers(kind):
    ours = DiscreteVP.from_config({**SD, "beta_schedule": kind})
    theirs = DDIMScheduler(**{**SD, "beta_schedule": kind}).alphas_cumprod
    t = torch.arange(1000)
    assert torch.allclose(ours.alpha(t) ** 2, theirs.double(), atol=1e-6)


@given(st.floats(-1, 999))
def test_variance_preserving(t):
    v = torch.tensor([t], dtype=torch.float64)
    assert float(VP.alpha(v) ** 2 + VP.sigma(v) ** 2) == pytest.approx(1, abs=1e-12)


@given(st.floats(0.01, 0.99))
def test_time_of_variance_is_the_inverse_of_sigma_squared(variance):
    t = torch.tensor([VP.time_of_variance(variance)], dtype=torch.float64)
    assert float(VP.sigma(t) ** 2) == pytest.approx(variance, abs=1e-9)


def test_both_meanings_of_sigma_are_those_of_the_paper_and_its_code():
    # methods: .4/.5/.7/.75 are t = about 295/354/483/521 as a variance, and 400/500/700/750 as a strength.
    for v, t in ((0.4, 295), (0.5, 354), (0.7, 483), (0.75, 521)):
        assert start_time(VP, Variance(v)) == pytest.approx(t, abs=1)
        assert start_time(VP, Strength(v)) == pytest.approx(1000 * v)


def test_the_wrong_meaning_of_sigma_leaves_the_wrong_noise():
    x0, eps = torch.zeros(1, 1, 200, 200), torch.randn(1, 1, 200, 200, generator=torch.Generator().manual_seed(0))
    right, wrong = (
        float(add_noise(x0, eps, torch.tensor([start_time(VP, s)], dtype=torch.float64), VP).var())
        for s in (Variance(0.5), Strength(0.5))
    )
    assert right == pytest.approx(0.5, abs=0.02)
    assert wrong == pytest.approx(0.72, abs=0.02)


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 1.5, float("nan")])
@pytest.mark.parametrize("kind", [Variance, Strength])
def test_sigma_out_of_range_is_refused(bad, kind):
    with pytest.raises(SettingError, match=r"sigma.*out of range"):
        kind(bad)


def test_fifty_steps_are_981_to_1():
    grid = VP.timesteps(50)
    assert (grid[0], grid[-1], len(grid)) == (981.0, 1.0, 50)


@given(st.integers(1, 100), st.floats(1, 998))
def test_n_steps_from_a_rollback_are_n_steps(n, start):
    grid = VP.timesteps(n, start)
    assert len(grid) == n
    assert grid[0] == start
    assert all(a > b > 0 for a, b in zip(grid, grid[1:], strict=False))


def test_flow_is_straight_and_shifts():
    flow = Flow(shift=3.0)
    t = torch.linspace(0, 1, 5)
    assert torch.allclose(flow.alpha(t) + flow.sigma(t), torch.ones(5).double())
    assert flow.timesteps(4)[1] == pytest.approx(3 * 0.75 / (1 + 2 * 0.75))
    v = Flow().time_of_variance(0.5)
    assert v == pytest.approx(0.5)
