"""Ancestral Euler, TCD, spacings and zero-terminal schedules against diffusers' schedulers, after every evaluation."""

import diffusers
import pytest
import torch
from diffusers.schedulers import scheduling_euler_ancestral_discrete, scheduling_tcd

from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import SettingError
from allaprima.core.seeds import noise_batch
from allaprima.diffusion.predictions import to_x0
from allaprima.diffusion.schedules import DiscreteVP, Flow
from allaprima.diffusion.solvers import make_solver, solver_name
from allaprima.diffusion.solvers.solver import scale_initial_noise

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
VP = DiscreteVP.from_config(SD)
ZERO = DiscreteVP.from_config({**SD, "rescale_betas_zero_snr": True})
SHAPE = (4, 8, 8)


def net(x):
    return torch.tanh(1.3 * x) * 0.7 + 0.1


def start():
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))


def fresh(i):
    return noise_batch([0, 1], "student", [i] * 2, SHAPE)


def distance(a, b):
    """Largest difference, relative to the largest entry."""
    return float((a - b).abs().max() / b.abs().max())


def walk(spec, n, kind="epsilon", schedule=VP, x=None):
    """Times, and samples after each evaluation."""
    solver = make_solver(spec, schedule)
    plan = solver.timesteps(n)
    x = scale_initial_noise(solver, start(), plan[0].t) if x is None else x
    state, out = solver.init(x), []
    for i, p in enumerate(plan):
        t, s = (torch.full((2,), v, dtype=torch.float64) for v in (p.t, p.s))
        x0 = to_x0(kind, net(x), x, schedule.alpha(t), schedule.sigma(t))
        x, state = solver.step(x, x0, t, s, state, fresh(i) if solver.needs_noise else None)
        out.append(x)
    return plan, out


def theirs(scheduler, n, **step):
    scheduler.set_timesteps(n)
    y, out = start() * scheduler.init_noise_sigma, []
    for i, t in enumerate(scheduler.timesteps):
        y = scheduler.step(net(scheduler.scale_model_input(y, t)), t, y, **step).prev_sample
        # In our coordinates: diffusers' Euler schedulers have y = x / alpha, and rho = sigma / alpha.
        rho = float(scheduler.sigmas[i + 1]) if "Euler" in type(scheduler).__name__ else 0.0
        out.append(y / (1 + rho**2) ** 0.5)
    return scheduler.timesteps.tolist(), out


def draws(monkeypatch, module):
    """Diffusers draws what ours draws."""
    count = iter(range(100))
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: fresh(next(count)))


def same(spec, n, scheduler, kind="epsilon", schedule=VP, bound=1e-5, **step):
    plan, mine = walk(spec, n, kind, schedule)
    times, due = theirs(scheduler, n, **step)
    assert [p.t for p in plan] == times
    assert all(distance(a, b) < bound for a, b in zip(mine, due, strict=True)), [
        distance(a, b) for a, b in zip(mine, due, strict=True)
    ]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("n", [1, 2, 4, 10])
def test_ancestral_euler_is_diffusers(n, spacing, kind, monkeypatch):
    draws(monkeypatch, scheduling_euler_ancestral_discrete)
    more = {"timestep_spacing": spacing, "steps_offset": 1, "prediction_type": kind}
    if (n, spacing) == (1, "linspace"):
        pytest.skip("its one time is 0, the clean end")
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**SD, **more)
    same(f"euler_ancestral@{spacing}", n, scheduler, kind, bound=3e-5 if kind == "epsilon" else 1e-5)


@pytest.mark.parametrize(("kind", "theirs_kind"), [("epsilon", "epsilon"), ("sample", "sample")])
@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_euler_trailing_is_diffusers(n, kind, theirs_kind):
    """What SDXL-Lightning paints with: one step with a network that says the sample, more with one that says the noise."""
    scheduler = diffusers.EulerDiscreteScheduler(**SD, timestep_spacing="trailing", prediction_type=theirs_kind)
    same("euler@trailing", n, scheduler, kind, bound=3e-5 if kind == "epsilon" else 1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_tcd_is_diffusers(n, eta, monkeypatch):
    draws(monkeypatch, scheduling_tcd)
    scheduler = diffusers.TCDScheduler(**SD)
    same("tcd" if eta == 0.3 else f"tcd:{eta}", n, scheduler, bound=3e-5, eta=eta)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("n", [4, 8, 20])
def test_ddim_at_every_spacing(n, spacing):
    scheduler = diffusers.DDIMScheduler(
        **SD,
        timestep_spacing=spacing,
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="v_prediction",
    )
    scheduler.set_timesteps(n)
    plan = make_solver(f"ddim@{spacing}", VP).timesteps(n)
    assert [p.t for p in plan] == scheduler.timesteps.tolist()
    # Diffusers' DDIM steps by T // n whatever its times are: between those of "linspace" it lands elsewhere.
    if spacing != "linspace":
        same(f"ddim@{spacing}", n, scheduler, "v_prediction")


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(
    ("name", "theirs_name"), [("dpm_solver", "DPMSolverMultistepScheduler"), ("unipc", "UniPCMultistepScheduler")]
)
@pytest.mark.parametrize("n", [4, 10])
def test_multistep_solvers_at_every_spacing(n, name, theirs_name, spacing):
    more = {"timestep_spacing": spacing, "steps_offset": 1, "prediction_type": "v_prediction", "final_sigmas_type": "zero"}
    same(f"{name}@{spacing}", n, getattr(diffusers, theirs_name)(**SD, **more), "v_prediction")


def test_without_a_spacing_nothing_has_changed():
    for name in ("ddim", "euler", "dpm_solver", "unipc", "consistency", "lcm", "heun"):
        plan, again = make_solver(name, VP).timesteps(5), make_solver(name, VP.with_timestep_spacing(None)).timesteps(5)
        assert plan == again
    assert [p.t for p in make_solver("euler", VP).timesteps(4)] == [751, 501, 251, 1]
    assert torch.equal(scale_initial_noise(make_solver("euler", VP), start(), 751.0), start())
    assert torch.equal(scale_initial_noise(make_solver("ddim@trailing", VP), start(), 999.0), start())


def test_times_may_be_given_one_by_one():
    assert [p.t for p in make_solver("lcm@800", VP).timesteps(1)] == [800]
    assert [p.t for p in make_solver("tcd:1@800,400", VP).timesteps(2)] == [800, 400]
    assert [(p.t, p.s) for p in make_solver("euler@999,500", VP).timesteps(2)] == [(999, 500), (500, -1)]
    with pytest.raises(SettingError, match="steps=3 with 2 times"):
        make_solver("ddim@999,500", VP).timesteps(3)
    # LCM's times are those of "trailing".
    assert make_solver("consistency@trailing", VP).timesteps(5) == make_solver("lcm", VP).timesteps(5)


def test_zero_terminal_schedules_are_diffusers():
    """arXiv 2305.08891, algorithm 1."""
    due = diffusers.DDIMScheduler(**SD, rescale_betas_zero_snr=True).alphas_cumprod.double()
    torch.testing.assert_close(ZERO.alphas_cumprod, due, atol=1e-7, rtol=0)
    t = torch.tensor([999.0, 998.0, 998.5, 0.0])
    assert ZERO.alpha(t)[0] == 0
    assert ZERO.sigma(t)[0] == 1
    assert bool((ZERO.alpha(t)[1:] > 0).all())
    torch.testing.assert_close(ZERO.alpha(t).square() + ZERO.sigma(t).square(), torch.ones(4, dtype=torch.float64))
    assert ZERO.alpha(t)[1] > ZERO.alpha(t)[2]


@pytest.mark.parametrize("n", [4, 10])
def test_zero_terminal_ddim(n):
    scheduler = diffusers.DDIMScheduler(
        **SD, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True, prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )  # fmt: skip
    same("ddim@trailing", n, scheduler, "v_prediction", ZERO)


@pytest.mark.parametrize(
    ("name", "theirs_name", "more"),
    [
        ("euler", "EulerDiscreteScheduler", {}),
        ("dpm_solver", "DPMSolverMultistepScheduler", {"final_sigmas_type": "zero"}),
        ("unipc", "UniPCMultistepScheduler", {"final_sigmas_type": "zero"}),
    ],
)
def test_zero_terminal_with_other_solvers(name, theirs_name, more):
    """These have 2^-24 of signal power in diffusers where ours has none: 2^-12 of its root, and so much apart."""
    scheduler = getattr(diffusers, theirs_name)(
        **SD, timestep_spacing="trailing", prediction_type="v_prediction", rescale_betas_zero_snr=True, **more
    )
    same(f"{name}@trailing", 6, scheduler, "v_prediction", ZERO, bound=6e-4)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("eulr", "Did you mean 'euler'"),
        ("euler@trailling", "leading, trailing, linspace"),
        ("euler@10,20", "falling"),
        ("euler@1000", "between 999 and 0"),
        ("euler:0.5", "has no eta"),
        ("tcd:2", "0, nothing fresh"),
        ("tcd:many", "is no number"),
    ],
)
def test_unreadable_solvers_are_named(spec, says):
    with pytest.raises(SettingError, match=says):
        make_solver(spec, VP)
    with pytest.raises(SettingError, match=says):
        CascadeSettings(student_solver=spec)


def test_flows_have_a_spacing_of_their_own():
    with pytest.raises(SettingError, match="its shift"):
        make_solver("euler@trailing", Flow(3.0))


def test_settings_take_a_spacing_or_a_last_time():
    assert CascadeSettings(teacher_solver="euler@trailing").teacher_solver == "euler@trailing"
    assert solver_name("tcd:0.5@trailing") == "tcd"
    with pytest.raises(SettingError, match="both say where"):
        CascadeSettings(teacher_solver="euler@trailing", teacher_last_time=20.0)
