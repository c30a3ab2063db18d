import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allaprima.core.errors import SettingError
from allaprima.core.types import Condition
from allaprima.diffusion.denoiser import NetworkDenoiser
from allaprima.diffusion.guidance import ClassifierFreeGuidance, GuidanceInterval
from allaprima.diffusion.predictions import PREDICTIONS, from_x0, to_x0
from allaprima.diffusion.schedules import DiscreteVP

VP = DiscreteVP.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})


class Counting:
    """A denoiser that says what it is told and counts its calls."""

    evaluations_per_call = 1

    def __init__(self):
        self.calls = 0

    def __call__(self, x_t, t, cond):
        self.calls += 1
        return cond.tensors["prompt_embeds"].expand_as(x_t)


def condition(w):
    n = len(w)
    return Condition(
        {
            "prompt_embeds": torch.full((n, 1), 2.0),
            "negative_prompt_embeds": torch.full((n, 1), 1.0),
            "guidance_scale": torch.tensor(w),
        }
    )


def test_each_sample_has_its_own_scale_in_one_call():
    inner = Counting()
    out = ClassifierFreeGuidance(inner)(torch.zeros(3, 1), torch.tensor([5.0, 6.0, 7.0]), condition([0.0, 1.0, 3.0]))
    assert out[:, 0].tolist() == [1.0, 2.0, 4.0]
    assert inner.calls == 1


def test_swapped_guidance_goes_the_wrong_way():
    c = condition([3.0]).tensors
    swapped = Condition({**c, "prompt_embeds": c["negative_prompt_embeds"], "negative_prompt_embeds": c["prompt_embeds"]})
    guide = ClassifierFreeGuidance(Counting())
    right, wrong = (float(guide(torch.zeros(1, 1), torch.tensor([5.0]), k)) for k in (Condition(c), swapped))
    assert right > 2.0 > 1.0 > wrong


def test_guidance_of_x0_is_guidance_of_eps():
    """The same result as diffusers' way, which guides the network's own output."""
    g = torch.Generator().manual_seed(0)
    x, u, c = (torch.randn(2, 3, generator=g) for _ in range(3))
    t = torch.tensor([300.0, 800.0])
    a, s = VP.alpha(t), VP.sigma(t)
    net = NetworkDenoiser(lambda x, t, cond: cond.tensors["prompt_embeds"], VP, "epsilon")
    cond = Condition({"prompt_embeds": c, "negative_prompt_embeds": u, "guidance_scale": torch.tensor([2.5, 7.0])})
    ours = ClassifierFreeGuidance(net)(x, t, cond)
    theirs = to_x0("epsilon", u + torch.tensor([[2.5], [7.0]]) * (c - u), x, a, s)
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_without_a_scale_it_says_so():
    with pytest.raises(SettingError, match="guidance_scale"):
        ClassifierFreeGuidance(Counting())(
            torch.zeros(1, 1), torch.tensor([5.0]), Condition({"prompt_embeds": torch.zeros(1, 1)})
        )


@given(st.sampled_from(PREDICTIONS), st.floats(20, 980), st.integers(0, 1000))
def test_every_prediction_comes_back(kind, t, seed):
    g = torch.Generator().manual_seed(seed)
    x0, x_t = (torch.randn(2, 3, generator=g, dtype=torch.float64) for _ in range(2))
    tt = torch.full((2,), t, dtype=torch.float64)
    a, s = VP.alpha(tt), VP.sigma(tt)
    assert torch.allclose(to_x0(kind, from_x0(kind, x0, x_t, a, s), x_t, a, s), x0, atol=1e-9)


def test_an_interval_guides_inside_both_ends_included():
    scale = GuidanceInterval(100, 800, outside=1.5).scale(
        4.0, torch.tensor([99.9, 100, 500, 800, 800.1], dtype=torch.float64)
    )
    assert scale.tolist() == [1.5, 4.0, 4.0, 4.0, 1.5]
    assert scale.dtype == torch.float32


@pytest.mark.parametrize(
    "bad", [(800, 100), (5, 5), (-1, 10), (0, float("inf")), (float("nan"), 9), (0, 9, -1), (0, 9, 101)]
)
def test_an_interval_that_makes_no_sense_is_refused(bad):
    with pytest.raises(SettingError, match=r"guidance (interval|outside)"):
        GuidanceInterval(*bad)


def test_unguided_is_guidance_of_scale_one_in_one_evaluation():
    rows = []

    def inner(x_t, t, cond):
        rows.append(len(x_t))
        return cond.tensors["prompt_embeds"].expand_as(x_t)

    guide, c = ClassifierFreeGuidance(inner), condition([1.0, 1.0])
    args = torch.zeros(2, 1), torch.tensor([5.0, 6.0]), c
    assert guide.unguided(*args).tolist() == guide(*args).tolist() == [[2.0], [2.0]]
    assert rows == [2, 4]
