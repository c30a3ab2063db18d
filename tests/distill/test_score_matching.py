"""Teacher score matching is 0 at the teacher; the denoising loss is least, not 0, at the posterior mean."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allaprima.core.errors import SettingError
from allaprima.diffusion.mixture import MixtureDenoiser
from allaprima.diffusion.schedules import DiscreteVP, Flow
from allaprima.distill.losses.score_matching import (
    denoising_loss,
    draw_times,
    snr_weight,
    teacher_score_matching_loss,
)

VP = DiscreteVP.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
MEAN, STD, N, D = 0.7, 0.5, 2000, 8


def teacher_at(mean=MEAN, std=STD, schedule=VP):
    return MixtureDenoiser(schedule, torch.full((1, D), mean), torch.tensor([std]))


def draws(schedule=VP, n=N):
    g = torch.Generator().manual_seed(0)
    x0 = MEAN + STD * torch.randn(n, D, generator=g, dtype=torch.float64)
    eps = torch.randn(n, D, generator=g, dtype=torch.float64)
    return x0, eps, draw_times(schedule, n, g)


@pytest.mark.parametrize("schedule", [VP, Flow()], ids=["vp", "flow"])
def test_it_is_zero_at_the_teacher_and_only_there(schedule):
    teacher = teacher_at(schedule=schedule)
    assert float(teacher_score_matching_loss(teacher, teacher, schedule, *draws(schedule))) == 0
    for other in (teacher_at(mean=MEAN + 0.1, schedule=schedule), teacher_at(std=STD * 1.2, schedule=schedule)):
        assert float(teacher_score_matching_loss(other, teacher, schedule, *draws(schedule))) > 1e-3


def test_the_spread_of_the_data_costs_the_denoising_loss_and_not_this_one():
    x0, eps, _ = draws()
    t = torch.full((N,), 500.0, dtype=torch.float64)
    a, s = float(VP.alpha(t[:1])), float(VP.sigma(t[:1]))
    posterior = STD**2 * s**2 / (a**2 * STD**2 + s**2)
    least = float(denoising_loss(teacher_at(), VP, x0, eps, t))
    assert least == pytest.approx(posterior, rel=0.03)
    # Least among neighbours: denoising on the data finds the teacher that score matching is given.
    for mean, std in ((MEAN + 0.1, STD), (MEAN - 0.1, STD), (MEAN, STD * 1.3), (MEAN, STD / 1.3)):
        assert float(denoising_loss(teacher_at(mean, std), VP, x0, eps, t)) > least


def test_gradients_reach_the_student_alone():
    x0, eps, t = (v[:4].requires_grad_() for v in draws())
    scale, other = (
        torch.ones((), dtype=torch.float64, requires_grad=True),
        torch.ones((), dtype=torch.float64).requires_grad_(),
    )
    student, teacher = (lambda x, t: scale * x), (lambda x, t: 2 * other * x)
    teacher_score_matching_loss(student, teacher, VP, x0, eps, t.detach()).backward()
    assert scale.grad is not None
    assert other.grad is None


def test_the_denoising_loss_sends_nothing_to_the_generator():
    x0 = torch.ones(4, D, requires_grad=True)
    scale = torch.ones((), requires_grad=True)
    denoising_loss(lambda x, t: scale * x, VP, x0, torch.ones(4, D), torch.full((4,), 500.0)).backward()
    assert scale.grad is not None
    assert x0.grad is None


def test_the_snr_weight_measures_the_error_in_eps():
    x0, eps, _ = draws()
    t = torch.linspace(50.0, 950.0, N, dtype=torch.float64)
    a, s = VP.alpha(t)[:, None], VP.sigma(t)[:, None]

    def eps_hat(x_t, t):
        return 0.9 * x_t

    ours = denoising_loss(lambda x, t: (x - s * eps_hat(x, t)) / a, VP, x0, eps, t, snr_weight(VP))
    theirs = (eps_hat(a * x0 + s * eps, t) - eps).square().mean()
    assert torch.allclose(ours, theirs)
    assert float(snr_weight(VP, 5.0)(torch.tensor([1.0]))) == 5.0


@settings(max_examples=30, deadline=None)
@given(low=st.floats(0, 0.5), width=st.floats(0.01, 0.5), seed=st.integers(0, 99))
def test_times_fill_their_range_and_stay_inside(low, width, seed):
    for schedule in (VP, Flow()):
        share = draw_times(schedule, 400, torch.Generator().manual_seed(seed), low, low + width) / schedule.t_max
        assert low <= float(share.min()) < low + 0.1 * width
        assert low + 0.9 * width < float(share.max()) <= low + width


def test_settings_out_of_range_are_refused():
    g = torch.Generator()
    with pytest.raises(SettingError, match=r"from 0\.9 to 0\.1"):
        draw_times(VP, 4, g, 0.9, 0.1)
    with pytest.raises(SettingError, match="limit=0"):
        snr_weight(VP, 0)
    whole = draw_times(VP, 100, g, whole=True)
    assert torch.equal(whole, whole.round())
