"""Distribution matching against truth: Gaussian data and an affine generator, whose fake score has a closed form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allaprima.diffusion.mixture import MixtureDenoiser
from allaprima.diffusion.noising import add_noise
from allaprima.diffusion.schedules import DiscreteVP, Flow
from allaprima.distill.losses.distribution_matching import (
    draw_matching_times,
    matching_gradient,
    matching_loss,
    regression_loss,
)

VP = DiscreteVP.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
MEAN, STD, N, D = 0.7, 0.5, 500, 16
# The guided mean of a condition at MEAN among conditions at 0, all of one spread, at scale 3.
SCALE = 3.0


def gaussian(mean, std=STD, schedule=VP):
    return MixtureDenoiser(schedule, torch.full((1, D), mean, dtype=torch.float64), torch.tensor([std], dtype=torch.float64))


def guided(conditional, unconditional):
    return lambda x, t: unconditional(x, t) + SCALE * (conditional(x, t) - unconditional(x, t))


def parameter_gradient(mean, std, gradient=matching_gradient, real=None, fake=None, schedule=VP):
    """Of the loss by the mean and the spread of the generator `x = mean + std z`."""
    g = torch.Generator().manual_seed(0)
    z, eps = (torch.randn(N, D, generator=g, dtype=torch.float64) for _ in range(2))
    a, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (std, mean))
    x = b + a * z
    real = gaussian(MEAN, schedule=schedule) if real is None else real
    fake = gaussian(mean, std, schedule) if fake is None else fake
    matching_loss(x, gradient(x, fake, real, schedule, eps, draw_matching_times(schedule, N, g))).backward()
    return float(b.grad), float(a.grad)


def check_fixed_point(gradient, schedule=VP):
    at = parameter_gradient(MEAN, STD, gradient, schedule=schedule)
    assert at == pytest.approx((0, 0), abs=1e-9)
    # A descent widens what is too narrow, narrows what is too wide, and brings the mean home from either side.
    assert parameter_gradient(MEAN, 0.5 * STD, gradient, schedule=schedule)[1] < -1e-3
    assert parameter_gradient(MEAN, 2 * STD, gradient, schedule=schedule)[1] > 1e-3
    assert parameter_gradient(MEAN - 0.3, STD, gradient, schedule=schedule)[0] < -1e-3
    assert parameter_gradient(MEAN + 0.3, STD, gradient, schedule=schedule)[0] > 1e-3


@pytest.mark.parametrize("schedule", [VP, Flow()], ids=["vp", "flow"])
def test_the_gradient_vanishes_at_the_data_and_points_there_from_either_side(schedule):
    check_fixed_point(matching_gradient, schedule)


def test_with_its_sign_flipped_it_runs_away():
    with pytest.raises(AssertionError):
        check_fixed_point(lambda *args: -matching_gradient(*args))


def test_a_real_score_in_place_of_the_fake_one_teaches_nothing():
    with pytest.raises(AssertionError):
        check_fixed_point(lambda x, fake, real, *rest: matching_gradient(x, real, real, *rest))


def check_guided_fixed_point(swapped):
    """Guidance of two Gaussians of one spread is a Gaussian at `m_u + w (m_c - m_u)`: there the generator must end."""
    conditional, unconditional = gaussian(MEAN), gaussian(0.0)

    def at(mean):
        fake = gaussian(mean)
        pair = (conditional, guided(fake, unconditional)) if swapped else (guided(conditional, unconditional), fake)
        return parameter_gradient(mean, STD, real=pair[0], fake=pair[1])

    assert at(SCALE * MEAN) == pytest.approx((0, 0), abs=1e-9)
    assert at(MEAN)[0] < -1e-3
    assert at(1.2 * SCALE * MEAN)[0] > 1e-3


def test_the_teachers_guidance_becomes_the_generators_own():
    check_guided_fixed_point(swapped=False)


def test_guidance_on_the_fake_score_instead_does_not():
    with pytest.raises(AssertionError):
        check_guided_fixed_point(swapped=True)


def batch_normalised(x, fake, real, schedule, eps, t):
    """The negative control: one normaliser for the whole batch."""
    x_t = add_noise(x, eps, t, schedule)
    mu_real = real(x_t, t)
    return (fake(x_t, t) - mu_real) / (x - mu_real).abs().mean()


def check_samples_are_strangers(gradient, seed):
    g = torch.Generator().manual_seed(seed)
    x, eps = (torch.randn(6, D, generator=g, dtype=torch.float64) for _ in range(2))
    t = draw_matching_times(VP, 6, g)
    fake, real = gaussian(0.0), gaussian(MEAN)
    together = gradient(x, fake, real, VP, eps, t)
    far = x.clone()
    far[1:] *= 10
    beside_far_ones = gradient(far, fake, real, VP, eps, t)
    assert torch.allclose(together[0], beside_far_ones[0], rtol=1e-9)
    # And each sample's gradient is measured in its own distance to the teacher's prediction.
    x_t = add_noise(x, eps, t, VP)
    distance = (x - real(x_t, t)).abs().mean(1, keepdim=True)
    assert torch.allclose(together * distance, fake(x_t, t) - real(x_t, t))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999))
def test_a_samples_gradient_does_not_depend_on_its_batch_mates(seed):
    check_samples_are_strangers(matching_gradient, seed)


def test_normalised_over_the_batch_it_would():
    with pytest.raises(AssertionError):
        check_samples_are_strangers(batch_normalised, 0)


def test_no_gradient_runs_through_either_score():
    knob = torch.ones((), dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    t = torch.full((5,), 400.0, dtype=torch.float64)
    g = matching_gradient(x, lambda v, t: knob * v, lambda v, t: knob * v / 2, VP, torch.ones_like(x), t)
    assert not g.requires_grad
    matching_loss(x, g).backward()
    assert knob.grad is None
    assert torch.allclose(x.grad, g / x.numel())


def test_a_sample_the_teacher_agrees_with_to_the_bit_divides_by_no_zero():
    x, t = torch.ones(3, D), torch.full((3,), 400.0)
    same = lambda v, t: torch.ones_like(v)  # noqa: E731
    assert torch.equal(matching_gradient(x, same, same, VP, torch.zeros(3, D), t), torch.zeros(3, D))


def test_times_lie_between_two_and_ninety_eight_per_cent():
    t = draw_matching_times(VP, 20_000, torch.Generator().manual_seed(0)) / VP.t_max
    assert (float(t.min()), float(t.max())) == pytest.approx((0.02, 0.98), abs=1e-3)
    assert float(t.min()) >= 0.02
    assert float(t.max()) <= 0.98


def test_the_exact_fake_score_leads_an_affine_generator_to_the_data():
    a, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.1, -1.0))
    optimizer = torch.optim.Adam([a, b], lr=0.02, betas=(0.5, 0.9))
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.04 if step < 120 else 0.004
        g = torch.Generator().manual_seed(step)
        z, eps = (torch.randn(64, D, generator=g, dtype=torch.float64) for _ in range(2))
        x = b + a * z
        fake = gaussian(float(b.detach()), abs(float(a.detach())))
        optimizer.zero_grad()
        matching_loss(x, matching_gradient(x, fake, gaussian(MEAN), VP, eps, draw_matching_times(VP, 64, g))).backward()
        optimizer.step()
    assert (b.item(), a.item()) == pytest.approx((MEAN, STD), abs=0.01)


def test_regression_is_zero_on_its_pairs_and_takes_another_distance():
    y = torch.randn(4, D, generator=torch.Generator().manual_seed(0))
    assert float(regression_loss(y, y)) == 0
    assert float(regression_loss(y + 2, y)) == pytest.approx(4, rel=1e-5)
    assert float(regression_loss(y + 2, y, lambda a, b: (a - b).abs().mean(1))) == pytest.approx(2, rel=1e-5)
