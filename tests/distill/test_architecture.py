"""Architecture-based students: what is the same costs nothing, what was taken away costs what the formula says."""

import copy

import pytest
import torch
from torch import nn

from allaprima.core.errors import SettingError
from allaprima.distill.feature_hooks import FeatureHooks
from allaprima.distill.losses.architecture import architecture_loss


class Stages(nn.Module):
    """Two stages of residual blocks, the second of which may be taken away."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1) for _ in range(2)])
        self.up = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.SiLU())
        self.join = nn.Identity()

    def forward(self, x):
        for block in self.down:
            x = x + block(x)
        return self.up(self.join(x))


NAMES = ["join", "up"]


def run(net, x):
    with FeatureHooks(net, NAMES) as taps:
        return net(x), dict(taps.outputs)


def losses(student, teacher, x, target, **weights):
    (ours, h_s), (theirs, h_t) = run(student, x), run(teacher, x)
    return architecture_loss(ours, theirs, target, h_s, h_t, **weights)


@pytest.fixture
def setting():
    torch.manual_seed(0)
    return Stages(), torch.randn(4, 3, 6, 6), torch.randn(4, 3, 6, 6)


def test_removing_nothing_costs_nothing(setting):
    teacher, x, target = setting
    found = losses(copy.deepcopy(teacher), teacher, x, target)
    assert found.output.item() == 0
    assert found.features.item() == 0
    assert torch.equal(found.total, found.task)


def test_removing_a_block_costs(setting):
    teacher, x, target = setting
    student = copy.deepcopy(teacher)
    student.down = student.down[:1]
    found = losses(student, teacher, x, target, lambda_out=2.0, lambda_feat=3.0)
    (ours, h_s), (theirs, h_t) = run(student, x), run(teacher, x)
    assert found.output.item() == pytest.approx((ours - theirs).square().mean().item())
    by_hand = sum((h_s[n] - h_t[n]).square().mean().item() for n in NAMES)
    assert found.features.item() == pytest.approx(by_hand)
    assert by_hand > 1e-3
    assert found.total.item() == pytest.approx((found.task + 2 * found.output + 3 * found.features).item())
    found.total.backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_stages_that_do_not_pair_up_are_refused(setting):
    x = setting[1]
    with pytest.raises(SettingError, match="name the same stages"):
        architecture_loss(x, x, x, {"up": x}, {"down": x})
    with pytest.raises(SettingError, match="stage 'up' gives"):
        architecture_loss(x, x, x, {"up": x[:, :1]}, {"up": x})


def test_taps_come_off_and_name_what_is_not_there(setting):
    net, x, _ = setting
    with FeatureHooks(net, NAMES) as taps:
        with pytest.raises(SettingError, match="has heard nothing"):
            taps["up"]
        out = net(x)
        assert taps["up"] is out
    net(x + 1)
    assert taps["up"] is out
    with pytest.raises(SettingError, match=r"no modules \['middle'\]"):
        FeatureHooks(net, ["middle"])


@pytest.mark.slow  # it imports diffusers
def test_a_unet_with_nothing_removed_costs_nothing():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    teacher = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8, attention_head_dim=4,
    ).eval()  # fmt: skip
    student = copy.deepcopy(teacher)
    names = ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]
    x, t, text = torch.randn(2, 4, 8, 8), torch.tensor([10, 500]), torch.randn(2, 3, 8)

    def both():
        with FeatureHooks(teacher, names) as h_t, FeatureHooks(student, names) as h_s:
            theirs, ours = (net(x, t, encoder_hidden_states=text, return_dict=False)[0] for net in (teacher, student))
            return architecture_loss(ours, theirs, x, h_s.outputs, h_t.outputs)

    found = both()
    assert found.output.item() == 0
    assert found.features.item() == 0
    # The base student's cut (appendix B.2): the second resnet and attention of a down stage.
    block = student.down_blocks[0]
    block.resnets[1].forward = lambda h, temb: h
    block.attentions[1].forward = lambda h, **_: (h,)
    found = both()
    assert found.output.item() > 0
    assert found.features.item() > 0
