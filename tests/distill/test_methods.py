"""Every method on a tiny model of diffusers' own classes: it trains, resumes to the bit, and teaches what it should."""

from pathlib import Path

import pytest
import torch
from tiny import setup, tiny_model, tiny_unet

from allaprima.core.errors import SettingError
from allaprima.diffusion.noising import add_noise
from allaprima.diffusion.solvers import make_solver
from allaprima.distill.methods import METHODS, consistency
from allaprima.distill.recipe import checked


def run(folder, method, options=None, **more):
    module, options_class = METHODS[method].load()
    b = setup(folder, method, options=options, **more)
    return module.run(b, checked(options_class, options or {}, method))


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


CASES = [
    ("consistency", {}),
    ("consistency", {"target": "end", "end_steps": 2}),
    ("tsm", {}),
    ("distribution_matching", {"generator_every": 1, "pairs": 4, "pairs_steps": 2}),
    ("distribution_matching", {"generator_every": 2, "steps": 2}),
    ("adversarial", {"generator_every": 1, "head_channels": 8, "head_learning_rate": 1e-2}),
]


@pytest.mark.parametrize(("method", "options"), CASES)
def test_it_trains_and_a_resumed_run_is_the_uninterrupted_one(tmp_path, method, options):
    whole = run(tmp_path / "a", method, options, max_train_steps=4)
    assert not torch.equal(weights(whole), weights(tiny_unet()))
    assert torch.isfinite(weights(whole)).all()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", method, options, max_train_steps=4, stop=2)
    again = run(tmp_path / "b", method, options, max_train_steps=4)
    assert torch.equal(weights(whole), weights(again))


def test_the_start_of_a_training_follows_from_its_seed(tmp_path):
    options = {"generator_every": 1, "head_channels": 8}
    torch.manual_seed(1)
    a = run(tmp_path / "a", "adversarial", options)
    torch.manual_seed(2)
    b = run(tmp_path / "b", "adversarial", options)
    assert torch.equal(weights(a), weights(b))


def test_guidance_outside_its_interval_is_another(tmp_path):
    """Beyond all times of the schedule the interval holds none: what is outside is the scale."""
    options = {"generator_every": 1, "guidance_scale": 3.0}
    plain = weights(run(tmp_path / "a", "distribution_matching", options))
    none = {**options, "guidance_scale": 7.0, "guidance_interval": [2000, 3000], "guidance_outside": 3.0}
    assert torch.equal(weights(run(tmp_path / "b", "distribution_matching", none)), plain)
    half = {**options, "guidance_interval": [500, 1000], "guidance_outside": 1.0}
    assert not torch.equal(weights(run(tmp_path / "c", "distribution_matching", half)), plain)


def test_times_of_the_gradient_are_those_asked_for(tmp_path):
    """The paper's range said aloud changes nothing, another does, and a falling one is refused."""
    options = {"generator_every": 1}
    plain = weights(run(tmp_path / "a", "distribution_matching", options))
    said = {**options, "matching_times": [0.02, 0.98]}
    assert torch.equal(weights(run(tmp_path / "b", "distribution_matching", said)), plain)
    high = {**options, "matching_times": [0.5, 0.98]}
    assert not torch.equal(weights(run(tmp_path / "c", "distribution_matching", high)), plain)
    with pytest.raises(SettingError, match="two rising shares"):
        run(tmp_path / "d", "distribution_matching", {**options, "matching_times": [0.9, 0.1]})


def test_the_end_of_a_trajectory_is_the_ddim_solvers():
    b = setup(Path("unused"), "consistency")
    cond = b.data.conditions.rows(slice(0, 2))
    teacher = b.guided(b.teacher.unet, cond)
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(2, 4, 8, 8, generator=g), torch.tensor([1.5, 3.0])
    t = torch.tensor([981.0, 400.0], dtype=torch.float64)
    found = consistency.trajectory_end(b, teacher, x, t, w, 200)
    solver = make_solver("ddim", b.schedule)
    for i in range(2):
        y, state = x[i : i + 1], solver.init(x[i : i + 1])
        one = b.guided(b.teacher.unet, cond.rows([i]))
        for p in solver.timesteps(200, float(t[i])):
            at, to = (torch.full((1,), v, dtype=torch.float64) for v in (p.t, p.s))
            y, state = solver.step(y, one(y.float(), at, w[i : i + 1]), at, to, state)
        assert float((found[i] - y[0]).abs().max()) < 0.05 * float(y.abs().max())


def test_score_matching_brings_a_smaller_network_to_its_teacher(tmp_path):
    small = tiny_unet(3, width=4)
    small.save_pretrained(tmp_path / "small")
    module, options_class = METHODS["tsm"].load()
    b = setup(tmp_path / "run", "tsm", max_train_steps=60, learning_rate=1e-2, train_batch_size=8, use_ema=0.9)
    b = type(b)(b.teacher, b.data, b.null, b.recipe.model_copy(update={"start": str(tmp_path / "small")}), b.folder)
    made = module.run(b, options_class())
    g = torch.Generator().manual_seed(9)
    latents, cond = b.data.draw(16, g)
    t = torch.full((16,), 500.0, dtype=torch.float64)
    x_t = add_noise(latents, torch.randn(latents.shape, generator=g), t, b.schedule)
    goal = module.prediction(b, b.teacher.unet, cond)(x_t, t)
    before, after = (float((module.prediction(b, n, cond)(x_t, t) - goal).square().mean()) for n in (small, made))
    assert after < 0.5 * before


def test_refused(tmp_path):
    with pytest.raises(SettingError, match="no range of guidance"):
        run(tmp_path, "consistency", {"w": [5, 2]})
    with pytest.raises(SettingError, match="grid_points"):
        run(tmp_path, "consistency", {"grid_points": 1})
    with pytest.raises(SettingError, match="regression with a chain"):
        run(tmp_path, "distribution_matching", {"steps": 2, "pairs": 4, "pairs_steps": 1})
    unknown = tiny_model(prediction="score")
    with pytest.raises(SettingError, match="prediction_type='score'"):
        run(tmp_path, "consistency", teacher=unknown)
