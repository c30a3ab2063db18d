"""A student and a teacher whose times are of different kinds: drafts are refined at the same signal-to-noise ratio."""

import pytest
import torch
from toys import SETTINGS, VP, Toy

from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import SettingError
from allaprima.core.seeds import noise_batch
from allaprima.diffusion.guidance import ClassifierFreeGuidance
from allaprima.diffusion.noising import Strength, Variance
from allaprima.diffusion.schedules import Flow, TrigFlow, expand
from allaprima.pipeline import AdaptivePipeline

MEAN, SPREAD = 0.5, 0.2
PROMPTS, SEEDS = ["0.3", "0.7", "0.5"], [3, 4, 5]
V = 0.4


class Gaussian(Toy):
    """The exact denoiser of data N(MEAN, SPREAD^2), whatever the prompt, on a schedule of one's choice."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    @property
    def denoiser(self):
        def x0(x_t, t, cond):
            a, s = (expand(v, x_t) for v in (self.schedule.alpha(t), self.schedule.sigma(t)))
            return MEAN + a * SPREAD**2 / (a * a * SPREAD**2 + s * s) * (x_t - a * MEAN)

        x0.evaluations_per_call = 1
        return ClassifierFreeGuidance(x0)


def painted(student, teacher, **changes):
    out = AdaptivePipeline(student, teacher, None, SETTINGS.changed(**changes))(PROMPTS, seed=SEEDS, mode="refine-all")
    return torch.stack([r.image[:1] for r in out.results])


def drafts_of(student):
    out = AdaptivePipeline(student, student, None, SETTINGS)(PROMPTS, seed=SEEDS, mode="student-only")
    return torch.stack([r.image[:1] for r in out.results])


@pytest.mark.parametrize("student", [Toy(), Gaussian(TrigFlow()), Gaussian(Flow(3.0))], ids=["vp", "angles", "flow"])
@pytest.mark.parametrize("teacher", [VP, Flow(), Flow(3.0), Flow(2.0, terminal=0.02), TrigFlow()])
def test_refining_is_the_closed_form_whatever_the_times(student, teacher):
    """`m + (x - alpha m) d / sqrt(alpha^2 d^2 + sigma^2)`, with the draft at variance V: the same for every schedule."""
    drafts = drafts_of(student)
    eps = noise_batch(SEEDS, "rollback", [0] * 3, drafts.shape[1:])
    a, s = (1 - V) ** 0.5, V**0.5
    due = MEAN + (a * drafts + s * eps - a * MEAN) * SPREAD / (a * a * SPREAD**2 + s * s) ** 0.5
    # Even steps in a VP model's integer times leave its last one long: more of them, and less asked of them.
    steps, atol = (161, 1.6e-2) if teacher is VP else (41, 4e-3)
    mine = painted(student, Gaussian(teacher), sigma=Variance(V), teacher_steps=steps, teacher_solver="heun")
    assert float(due.min()) > 0 and float(due.max()) < 1, "nothing is clamped"
    torch.testing.assert_close(mine, due, atol=atol, rtol=0)


def test_the_variance_matters_more_than_the_tolerance():
    near, far = (
        painted(Toy(), Gaussian(Flow()), sigma=Variance(v), teacher_steps=41, teacher_solver="heun") for v in (V, 0.75)
    )
    assert float((far - near).abs().max()) > 0.02


def test_a_strength_is_the_teachers_own():
    """A share of the teacher's schedule: of VP times and of flow times it is another ratio, as with diffusers."""
    same = [
        painted(Toy(), Gaussian(k), sigma=Strength(0.6), teacher_steps=41, teacher_solver="heun") for k in (VP, Flow(3.0))
    ]
    assert float((same[0] - same[1]).abs().max()) > 0.01


def test_latents_of_another_shape_are_refused():
    class Wide(Gaussian):
        def latent_shape(self, height, width):
            return (4, height, width)

    settings = CascadeSettings(height=2, width=2)
    with pytest.raises(SettingError, match=r"\(1, 2, 2\).*\(4, 2, 2\)"):
        AdaptivePipeline(Toy(), Wide(Flow()), None, settings)("0.5", seed=1, mode="refine-all")
