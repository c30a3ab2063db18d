"""CoDi's loss against closed forms: fixed points on Gaussian data for each predictor, identities, and how it collapses."""

import pytest
import torch

from allaprima.core.errors import SettingError
from allaprima.diffusion.predictions import eps_of
from allaprima.diffusion.schedules import DiscreteVP, Flow
from allaprima.distill.losses.conditional import conditional_loss, next_point

VP = DiscreteVP.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
MEAN, SPREAD, T, S = 0.7, 0.6, 600.0, 200.0
KINDS = ("prev", "own_ddim", "teacher_ddim")


def scales(schedule, t):
    time = torch.tensor([t], dtype=torch.float64)
    return float(schedule.alpha(time)), float(schedule.sigma(time))


def gain(t):
    """Of the exact denoiser of N(MEAN, SPREAD^2): x0_hat = MEAN + gain (x_t - alpha MEAN)."""
    a, s = scales(VP, t)
    return a * SPREAD**2 / (a**2 * SPREAD**2 + s**2)


def linear(g, t):
    """A denoiser with this gain at time t."""
    a, _ = scales(VP, t)
    return lambda x, times: MEAN + g * (x - a * MEAN)


def fixed_point(kind, weight, g_s):
    """Where the loss' gradient is zero in expectation, for a student x0_hat = MEAN + g y, y = x_t - alpha_t MEAN.

    Nothing is sent back through the target, so the condition is E[d eps_hat/dg (eps_hat - eps_goal)] +
    weight E[d x0_hat/dg (x0_hat - x0)] = 0 with d eps_hat/dg = -alpha_t y / sigma_t, d x0_hat/dg = y; E[y^2] = V,
    E[y eps] = sigma_t, E[y (x0 - MEAN)] = alpha_t SPREAD^2. All of it is linear in g.
    """
    (a, s), (a_s, s_s) = scales(VP, T), scales(VP, S)
    var = a**2 * SPREAD**2 + s**2
    rest = (1 - a_s * g_s) / s_s

    def condition(g):
        if kind == "prev":
            goal = rest * (a_s * g * var + s_s * s)
        else:
            h = g if kind == "own_ddim" else gain(T)
            goal = rest * (a_s * h + s_s / s * (1 - a * h)) * var
        return -(a / s) * ((1 - a * g) / s * var - goal) + weight * (g * var - a * SPREAD**2)

    return condition(0.0) / (condition(0.0) - condition(1.0))


def trained(kind, weight, g_s, steps=2500, n=4096):
    g = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([g], 0.2)
    generator = torch.Generator().manual_seed(0)
    t, s = torch.full((n,), T, dtype=torch.float64), torch.full((n,), S, dtype=torch.float64)
    tail = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.2 / (1 + step / 50)
        x0 = MEAN + SPREAD * torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64)
        eps = torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64)
        loss = conditional_loss(linear(g, T), linear(g_s, S), VP, x0, eps, t, s, kind, linear(gain(T), T), weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tail.append(float(g.detach()))
    return sum(tail[-500:]) / 500


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_the_fixed_point_is_the_closed_forms(kind, weight):
    g_s = 0.8 * gain(S) + 0.2  # not the posterior mean's: a consistency map's leans towards more
    due = fixed_point(kind, weight, g_s)
    assert trained(kind, weight, g_s) == pytest.approx(due, abs=3e-3)
    assert abs(due - gain(T)) > 0.01, "it isn't what denoising alone would give"


def test_the_fixed_points_differ_between_predictors():
    found = sorted(fixed_point(kind, 1.0, 0.8 * gain(S) + 0.2) for kind in KINDS)
    assert min(found[1] - found[0], found[2] - found[1]) > 0.006, "or the test above could not tell them apart"


def test_only_the_second_term_is_left_when_the_student_agrees_with_its_copy():
    """A perfect consistency map has first term zero under own_ddim: what is left is the distance to x0."""
    (a, s), (a_s, s_s) = scales(VP, T), scales(VP, S)
    flow = {t: SPREAD / (al**2 * SPREAD**2 + si**2) ** 0.5 for t, al, si in ((T, a, s), (S, a_s, s_s))}
    # Along the exact flow y_s / sd_s = y_t / sd_t; one DDIM step is not the flow, so the map at s is made to fit it.
    k = a_s * flow[T] + s_s / s * (1 - a * flow[T])
    g = torch.Generator().manual_seed(1)
    x0, eps = (torch.randn(64, 1, 1, 1, generator=g, dtype=torch.float64) for _ in range(2))
    times = [torch.full((64,), v, dtype=torch.float64) for v in (T, S)]
    given = (linear(flow[T], T), linear(flow[T] / k, S), VP, MEAN + SPREAD * x0, eps, *times, "own_ddim", None)
    assert float(conditional_loss(*given, x_weight=0.0)) < 1e-20
    assert float(conditional_loss(*given, x_weight=1.0)) > 1e-3


@pytest.mark.parametrize("schedule", [VP, Flow(3.0)])
def test_under_own_ddim_the_eps_loss_is_snr_times_the_x_loss_and_under_prev_it_is_not(schedule):
    g = torch.Generator().manual_seed(0)
    x0, eps, bias = (torch.randn(8, 2, 3, 3, generator=g, dtype=torch.float64) for _ in range(3))
    now, then = (T, S) if schedule is VP else (0.7, 0.4)
    t, s = (torch.full((8,), v, dtype=torch.float64) for v in (now, then))
    (a, sg), (a_s, s_s) = scales(schedule, now), scales(schedule, then)

    def student(x, times):
        return 0.4 * x + bias

    def target(x, times):
        return 0.7 * x - 0.2 * bias

    x_t = a * x0 + sg * eps
    for kind, same in (("own_ddim", True), ("prev", False)):
        loss = conditional_loss(student, target, schedule, x0, eps, t, s, kind, x_weight=0.0)
        x_s = next_point(kind, x_t, student(x_t, t), eps, t, s, schedule)
        x_loss = (student(x_t, t) - target(x_s, s)).square().mean()
        assert (abs(float(loss / (a_s**2 / s_s**2 * x_loss)) - 1) < 1e-9) is same


def test_points_lie_where_they_should():
    g = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(4, 1, 2, 2, generator=g, dtype=torch.float64) for _ in range(2))
    t, s = (torch.full((4,), v, dtype=torch.float64) for v in (T, S))
    (a, sg), (a_s, s_s) = scales(VP, T), scales(VP, S)
    x_t, there = a * x0 + sg * eps, a_s * x0 + s_s * eps
    for kind in ("prev", "own_ddim"):
        torch.testing.assert_close(next_point(kind, x_t, x0, eps, t, s, VP), there)
    made = next_point("teacher_ddim", x_t, x0 * 0, eps, t, s, VP, lambda x, times: x0)
    torch.testing.assert_close(made, there)


def test_without_the_second_term_a_constant_is_a_solution_under_own_ddim_and_not_under_prev():
    """The collapse that d_x is there against: x0_hat = c has a first term of zero, whatever the data."""
    g = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(256, 1, 2, 2, generator=g, dtype=torch.float64) for _ in range(2))
    t, s = (torch.full((256,), v, dtype=torch.float64) for v in (T, S))
    level = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def constant(x, times):
        return level.expand_as(x)

    def loss(kind, weight):
        return conditional_loss(constant, constant, VP, x0, eps, t, s, kind, x_weight=weight)

    assert float(loss("own_ddim", 0.0).detach()) < 1e-20
    assert float(loss("own_ddim", 1.0).detach()) > 0.5
    assert float(loss("prev", 0.0).detach()) > 0.05
    (grad,) = torch.autograd.grad(loss("own_ddim", 0.0), level)
    assert abs(float(grad)) < 1e-10, "nothing leads away from it"


def test_nothing_is_sent_back_through_target_or_point():
    x0, eps = torch.randn(2, 1, 2, 2), torch.randn(2, 1, 2, 2)
    t, s = (torch.full((2,), v, dtype=torch.float64) for v in (T, S))
    mine, slow = (torch.tensor(0.5, requires_grad=True) for _ in range(2))
    given = (lambda x, _: mine * x, lambda x, _: slow * x, VP, x0, eps, t, s)
    for kind in ("prev", "own_ddim"):
        value = conditional_loss(*given, kind)
        (grad,) = torch.autograd.grad(value, mine)
        with pytest.raises(RuntimeError):
            torch.autograd.grad(conditional_loss(*given, kind), slow)
        x_t = scales(VP, T)[0] * x0 + scales(VP, T)[1] * eps
        goal = eps_of(0.5 * (x_s := next_point(kind, x_t, 0.5 * x_t, eps, t, s, VP)), x_s, VP.alpha(s), VP.sigma(s))
        again = (eps_of(mine * x_t, x_t, VP.alpha(t), VP.sigma(t)) - goal).square().mean() + (
            mine * x_t - x0
        ).square().mean()
        torch.testing.assert_close(grad, torch.autograd.grad(again, mine)[0])


def test_what_makes_no_sense_is_refused():
    x = torch.zeros(1, 1, 2, 2)
    t, s = torch.tensor([T], dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64)
    with pytest.raises(SettingError, match="clean end"):
        conditional_loss(lambda x, t: x, lambda x, t: x, VP, x, x, t, s)
    with pytest.raises(SettingError, match="needs the teacher"):
        next_point("teacher_ddim", x, x, x, t, t, VP)
