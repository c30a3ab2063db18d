"""Prompt influence on networks with planted attention, where every layer's softmax is known in closed form."""

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from allaprima.analysis.influence import over_steps, prompt_influence
from allaprima.analysis.painting import RecordingModel, attends
from allaprima.core.errors import ModelError, SettingError
from allaprima.core.types import Condition
from allaprima.diffusion.guidance import ClassifierFreeGuidance
from allaprima.models.components.attention import attention_of, content_tokens, cross_attentions, watched

WIDTH = 8


def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=2, out_channels=2, layers_per_block=1, block_out_channels=(WIDTH, 2 * WIDTH),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=4, attention_head_dim=2, norm_num_groups=4,
    ).eval()  # fmt: skip


@torch.no_grad()
def plant(network, strength):
    """Every cross-attention's query is a constant, whatever the picture: logits are `strength` times the text's first
    channel, in every head."""
    blocks = [m for m in network.modules() if hasattr(m, "attn2") and hasattr(m, "norm2")]
    for block in blocks:
        layer, norm = block.attn2, block.norm2
        norm.weight.zero_()
        norm.bias.zero_()
        norm.bias[0] = 1
        layer.to_q.weight.zero_()
        layer.to_q.weight[:, 0] = 1
        layer.to_k.weight.zero_()
        size = layer.to_q.weight.shape[0] // layer.heads
        layer.to_k.weight[:, 0] = strength / math.sqrt(size)
    return len(blocks)


def test_planted_attention_is_read_back_in_closed_form():
    network = unet()
    layers = plant(network, 2.0)
    assert len(cross_attentions(network)) == layers > 1
    text = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1))
    with watched(network) as watch, torch.inference_mode():
        plain = network(torch.randn(3, 2, 8, 8), torch.tensor([5.0, 5.0, 5.0]), text)
        seen = watch.take()
    assert plain.sample.shape == (3, 2, 8, 8)
    expected = (2.0 * text[..., 0]).softmax(1)
    assert seen.shape == (3, 5)
    assert torch.allclose(seen, expected, atol=1e-5)
    with pytest.raises(ModelError, match="no cross-attention was called"):
        watch.take()


def test_watching_changes_nothing_and_ends():
    network, x, text = unet(), torch.randn(2, 2, 8, 8), torch.randn(2, 5, 4)
    with torch.inference_mode():
        before = network(x, torch.tensor([3.0, 3.0]), text).sample
        with watched(network) as watch:
            during = network(x, torch.tensor([3.0, 3.0]), text).sample
        first = watch.take()
        network(x, torch.tensor([3.0, 3.0]), text)
    assert torch.equal(before, during)
    assert torch.allclose(first.sum(1), torch.ones(2), atol=1e-5)
    with pytest.raises(ModelError):
        watch.take()


def test_a_mask_takes_its_tokens_out():
    layer = next(iter(cross_attentions(unet()).values()))
    hidden, text = torch.randn(1, 6, layer.to_q.in_features), torch.randn(1, 4, 4)
    mask = torch.tensor([[[0.0, 0.0, -10000.0, -10000.0]]])
    seen = attention_of(layer, hidden, text, mask)
    assert seen[0, 2:] == pytest.approx([0, 0], abs=1e-6)
    assert float(seen.sum()) == pytest.approx(1, abs=1e-5)


def test_the_conditional_half_is_what_is_kept():
    network = unet()
    plant(network, 3.0)
    painter = SimpleNamespace(network=network)

    def x0(x_t, t, cond):
        return network(x_t, t.float(), cond.tensors["prompt_embeds"]).sample

    x0.evaluations_per_call = 1
    painter.denoiser = ClassifierFreeGuidance(x0)
    side, text = RecordingModel(painter), torch.zeros(2, 5, 4)
    text[0, 1, 0] = text[1, 3, 0] = 2.0
    cond = Condition(
        {"prompt_embeds": text, "negative_prompt_embeds": torch.zeros(2, 5, 4), "guidance_scale": torch.full((2,), 2.0)}
    )
    with side.attending(), torch.inference_mode():
        for t in (9.0, 4.0):
            side.denoiser(torch.randn(2, 2, 8, 8), torch.full((2,), t), cond)
    assert [len(x) for x in (side.times, side.predictions, side.attention)] == [2, 2, 2]
    mean = over_steps(side.attention)
    top = math.exp(6) / (math.exp(6) + 4)
    assert mean.argmax(1).tolist() == [1, 3]
    assert prompt_influence(mean, torch.ones(2, 5, dtype=torch.bool)).tolist() == pytest.approx([top, top], abs=1e-5)


def test_only_words_count_and_the_largest_of_them():
    attention = torch.tensor([[0.7, 0.1, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4]])
    words = torch.tensor([[False, True, True, False], [False, True, True, True]])
    assert prompt_influence(attention, words).tolist() == pytest.approx([0.2, 0.4])
    with pytest.raises(SettingError, match="no word"):
        prompt_influence(attention, torch.zeros(2, 4, dtype=torch.bool))
    with pytest.raises(SettingError, match="twice"):
        prompt_influence(attention, words[:, :3])


def test_words_are_tokens_without_begin_end_and_padding(pipe):
    words = content_tokens(pipe.student, ["red apple, noto", "owl"])
    assert words.shape == (2, 16)
    # "red", "apple", ",", and "noto" in one or more pieces: begin, end and padding are none.
    assert not words[:, 0].any()
    assert words.sum(1).tolist() == [pipe.student.token_count(p) - 2 for p in ("red apple, noto", "owl")]


def test_networks_without_cross_attention_say_so():
    with pytest.raises(ModelError, match="no cross-attention"), watched(torch.nn.Linear(2, 2)):
        pass
    assert not attends(SimpleNamespace(network=torch.nn.Linear(2, 2)))
    assert attends(SimpleNamespace(network=unet()))
    assert not attends(SimpleNamespace(network=unet(), networks=[1]))
