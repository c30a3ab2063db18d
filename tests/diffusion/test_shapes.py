"""Wrong shapes and dtypes raise here, under the hook of conftest.py; without it nothing is wrapped, and nothing is paid."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

import allaprima
from allaprima.core.seeds import noise_batch
from allaprima.core.types import Condition
from allaprima.diffusion.denoiser import NetworkDenoiser
from allaprima.diffusion.guidance import ClassifierFreeGuidance
from allaprima.diffusion.mixture import MixtureDenoiser
from allaprima.diffusion.noising import add_noise
from allaprima.diffusion.predictions import PREDICTIONS, from_x0, to_x0
from allaprima.diffusion.schedules import DiscreteVP, Flow
from allaprima.diffusion.solvers import SOLVERS, make_solver
from allaprima.distill.losses.consistency import consistency_loss

VP = DiscreteVP.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
X = torch.zeros(3, 2, 4, 4)
T, S = torch.full((3,), 500.0), torch.full((3,), 300.0)
OTHER = {
    "fewer": torch.zeros(2, 2, 4, 4),
    # Both would broadcast in silence, which is what makes them worth a check.
    "one row": torch.zeros(1, 2, 4, 4),
    "one channel": torch.zeros(3, 1, 4, 4),
    "integers": torch.zeros(3, 2, 4, 4, dtype=torch.long),
}
TIMES = {
    "fewer": T[:2],
    "one": T[:1],
    "a column": T[:, None],
    "a scalar": T[0],
    "integers": T.long(),
}


def raises():
    return pytest.raises(TypeCheckError)


def wrong(cases):
    return pytest.mark.parametrize("bad", cases.values(), ids=cases.keys())


@pytest.mark.parametrize("schedule", [VP, Flow()])
@pytest.mark.parametrize("bad", [T[:, None], T[0], T > 1, 0.5], ids=["a column", "a scalar", "booleans", "a number"])
def test_a_schedule_wants_one_number_a_sample(schedule, bad):
    for answer in (schedule.alpha, schedule.sigma):
        assert answer(T).shape == answer(T.long()).shape == (3,)
        with raises():
            answer(bad)


@wrong(OTHER)
@pytest.mark.parametrize("name", list(SOLVERS))
def test_a_solver_wants_predictions_like_its_samples(name, bad):
    solver = make_solver(name, VP)
    with raises():
        solver.step(X, bad, T, S, solver.init(X), X)


@wrong(TIMES)
@pytest.mark.parametrize("name", list(SOLVERS))
def test_a_solver_wants_a_time_a_sample(name, bad):
    solver = make_solver(name, VP)
    solver.step(X, X, T, S, solver.init(X), X)
    with raises():
        solver.step(X, X, bad, S, solver.init(X), X)
    with raises():
        solver.step(X, X, T, bad, solver.init(X), X)


@pytest.mark.parametrize("name", [k for k in SOLVERS if make_solver(k, VP).init(X)])
def test_a_solver_wants_the_memory_of_this_batch(name):
    solver = make_solver(name, VP)
    with raises():
        solver.step(X, X, T, S, solver.init(X[:2]), X)


@wrong({"fewer": torch.zeros(2, 2, 4, 4), "one row": torch.zeros(1, 2, 4, 4)})
def test_fresh_noise_is_a_row_a_sample(bad):
    with raises():
        make_solver("consistency", VP).step(X, X, T, S, {}, bad)


@wrong(TIMES)
def test_guidance_wants_a_time_a_sample(bad):
    cond = Condition({"e": torch.ones(3, 1), "negative_e": torch.ones(3, 1), "guidance_scale": torch.ones(3)})
    guided = ClassifierFreeGuidance(lambda x, t, c: x)
    assert guided(X, T, cond).shape == X.shape
    with raises():
        guided(X, bad, cond)


def test_guidance_and_a_network_answer_with_the_shape_they_were_asked():
    cond = Condition({"e": torch.ones(3, 1), "negative_e": torch.ones(3, 1), "guidance_scale": torch.ones(3)})
    with raises():
        ClassifierFreeGuidance(lambda x, t, c: x[:, :1])(X, T, cond)
    with raises():
        NetworkDenoiser(lambda x, t, c: x[:, :1], VP, "epsilon")(X, T, cond)


@wrong(OTHER)
def test_add_noise_wants_noise_like_the_draft(bad):
    assert add_noise(X, X, T, VP).shape == X.shape
    with raises():
        add_noise(X, bad, T, VP)
    with raises():
        add_noise(bad, X, T, VP)


@wrong(TIMES)
def test_add_noise_wants_a_time_a_sample(bad):
    with raises():
        add_noise(X, X, bad, VP)


@pytest.mark.parametrize("convert", [to_x0, from_x0])
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_predictions_are_converted_sample_by_sample(convert, kind):
    a, s = VP.alpha(T), VP.sigma(T)
    assert convert(kind, X, X, a, s).shape == X.shape
    for bad in OTHER.values():
        with raises():
            convert(kind, bad, X, a, s)
    for bad in TIMES.values():
        with raises():
            convert(kind, X, X, bad, s)


@pytest.mark.parametrize(
    "change",
    [{"eps": X[:1]}, {"eps": X[:, :1]}, {"index": torch.tensor([1, 2])}, {"index": T}, {"w": T[:1]}, {"w": T[:, None]}],
    ids=["one noise", "one channel", "fewer times", "times for positions", "one scale", "a column of scales"],
)
def test_the_consistency_loss_wants_one_of_everything_a_sample(change):
    def loss(x0=X, eps=X, index=torch.tensor([0, 1, 2]), w=T):  # noqa: B008
        return consistency_loss(*[lambda x, t, w: x] * 3, VP, VP.timesteps(5), x0, eps, index, w)

    assert loss().shape == ()
    with raises():
        loss(**change)


def test_a_mixture_has_a_spread_and_a_weight_for_each_mean():
    means = torch.zeros(2, 1)
    MixtureDenoiser(VP, means, torch.ones(2), torch.ones(2))
    with raises():
        MixtureDenoiser(VP, means, torch.ones(3))
    with raises():
        MixtureDenoiser(VP, means, torch.ones(2), torch.ones(1))


def test_the_seeds_count_is_in_the_type(monkeypatch):
    assert noise_batch([1, 2], "initial", [0, 0], (4,)).shape == (2, 4)
    monkeypatch.setattr(torch, "stack", lambda rows: rows[0][None])
    with raises():
        noise_batch([1, 2], "initial", [0, 0], (4,))


PLAIN = """
import sys
import torch
from allaprima.core.seeds import noise_batch
from allaprima.diffusion.guidance import ClassifierFreeGuidance
from allaprima.diffusion.predictions import to_x0
from allaprima.diffusion.noising import add_noise
from allaprima.diffusion.schedules import DiscreteVP
from allaprima.diffusion.solvers.ddim import DDIM
from allaprima.distill.losses.consistency import consistency_loss

checked = (DDIM.step, DiscreteVP.alpha, ClassifierFreeGuidance.__call__, add_noise, to_x0, consistency_loss, noise_batch)
print([f.__qualname__ for f in checked if hasattr(f, "__wrapped__")], "beartype" in sys.modules)
vp = DiscreteVP.from_config({})
print(add_noise(torch.zeros(3, 2), torch.zeros(1, 2), torch.tensor([500.0]), vp).shape)
"""


def test_production_is_free():
    """The same functions in a plain process: unwrapped, beartype not imported, a shape that raises above goes through."""
    from allaprima.diffusion.solvers.ddim import DDIM

    assert hasattr(DDIM.step, "__wrapped__")
    env = {**os.environ, "PYTHONPATH": str(Path(allaprima.__file__).parents[1])}
    out = subprocess.run([sys.executable, "-c", PLAIN], env=env, capture_output=True, text=True, check=True).stdout
    assert out == "[] False\ntorch.Size([3, 2])\n"


LIGHT = """
import sys
import allaprima
print(sorted({"torch", "numpy", "jaxtyping"} & sys.modules.keys()))
sys.argv = ["allaprima", "--help"]
from allaprima.cli import main
try:
    main()
except SystemExit:
    print(sorted({"torch", "numpy", "jaxtyping"} & sys.modules.keys()))
"""


def test_neither_the_import_nor_the_help_loads_what_the_shapes_need():
    env = {**os.environ, "PYTHONPATH": str(Path(allaprima.__file__).parents[1])}
    out = subprocess.run([sys.executable, "-c", LIGHT], env=env, capture_output=True, text=True, check=True).stdout
    assert (out.splitlines()[0], out.splitlines()[-1]) == ("[]", "[]")
