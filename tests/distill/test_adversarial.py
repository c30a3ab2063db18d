"""The adversarial part: the optimum of the losses, the head's shape, and the weight that makes two gradients equal."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allaprima.core.errors import SettingError
from allaprima.distill.losses.adversarial import DiscriminatorHead, discriminator_loss, generator_loss, matched_weight
from allaprima.distill.losses.distribution_matching import matching_loss


def test_the_discriminators_optimum_is_the_log_ratio():
    # Real data are A three times out of four, generated ones B: D = log p_real / p_fake is +-log 3.
    d = torch.tensor([math.log(3), -math.log(3)], requires_grad=True)
    discriminator_loss(d[[0, 0, 0, 1]], d[[0, 1, 1, 1]]).backward()
    assert torch.allclose(d.grad, torch.zeros(2), atol=1e-6)
    wrong = torch.tensor([math.log(2), -math.log(2)], requires_grad=True)
    discriminator_loss(wrong[[0, 0, 0, 1]], wrong[[0, 1, 1, 1]]).backward()
    assert wrong.grad[0] < -1e-2
    assert wrong.grad[1] > 1e-2


def test_the_generator_wants_to_be_taken_for_real():
    d = torch.zeros(3, requires_grad=True)
    generator_loss(d).backward()
    assert torch.allclose(d.grad, torch.full((3,), -0.5 / 3))


@pytest.mark.parametrize("size", [1, 4, 7, 16])
def test_the_head_gives_each_sample_one_logit_of_its_own(size):
    torch.manual_seed(0)
    head = DiscriminatorHead(12, hidden=16, groups=4)
    features = torch.randn(5, 12, size, size)
    logits = head(features)
    assert logits.shape == (5,)
    assert torch.allclose(head(features[2:3]), logits[2:3], atol=1e-5)
    assert float(logits.detach().std()) > 1e-3


def test_a_head_whose_groups_do_not_fit_is_refused():
    with pytest.raises(SettingError, match="groups=32"):
        DiscriminatorHead(12, hidden=48)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), strength=st.floats(1e-4, 1e2))
def test_the_weight_makes_the_gradients_on_the_image_equal_in_norm(seed, strength):
    generator = torch.Generator().manual_seed(seed)
    noise, g, direction = (torch.randn(6, 10, generator=generator, dtype=torch.float64) for _ in range(3))
    scale = torch.full((), 2.0, dtype=torch.float64, requires_grad=True)
    x = scale * noise
    matching = matching_loss(x, g)
    adversarial = generator_loss(strength * (direction * x).sum(1))
    weight = matched_weight(matching, adversarial, x)
    assert not weight.requires_grad
    ours, theirs = (torch.autograd.grad(v, x, retain_graph=True)[0].norm() for v in (matching, weight * adversarial))
    assert torch.allclose(ours, theirs, rtol=1e-9)
    # The graph is still there for the step itself.
    (matching + weight * adversarial).backward()
    assert scale.grad is not None


def test_a_head_that_is_very_sure_is_matched_too():
    x = torch.ones(3, 2, requires_grad=True)
    matching, adversarial = matching_loss(x, torch.ones(3, 2)), generator_loss(35 * x.sum(1))
    weight = matched_weight(matching, adversarial, x)
    ours, theirs = (torch.autograd.grad(v, x, retain_graph=True)[0].abs().max() for v in (matching, weight * adversarial))
    assert torch.isfinite(weight)
    assert torch.allclose(ours, theirs, rtol=1e-4), "in float32 the squares of such a gradient are 0"


def test_a_head_that_sees_no_difference_weighs_nothing():
    x = torch.ones(3, 2, requires_grad=True)
    assert float(matched_weight(matching_loss(x, torch.ones(3, 2)), generator_loss(0 * x.sum(1)), x)) == 0
