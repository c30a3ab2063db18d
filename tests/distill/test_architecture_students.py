"""Smaller students: what stays equals the teacher's, diffusers loads and runs the result, nothing removed is exact."""

import math
from importlib import resources
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from allaprima.core.errors import ModelError, SettingError
from allaprima.distill.architecture import (
    HiddenStates,
    count_parameters,
    make_cut,
    make_student,
    student_config,
)
from allaprima.distill.methods.architecture import matching_blocks
from allaprima.distill.weight_slicing import sliced

EMOJI = Path(str(resources.files("allaprima"))) / "bundled" / "emoji" / "weights" / "teacher" / "unet"
SD15 = {
    "sample_size": 8, "block_out_channels": (16, 32, 48, 48), "norm_num_groups": 8, "cross_attention_dim": 12,
    "attention_head_dim": 4, "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
SDXL = {
    "sample_size": 8, "block_out_channels": (16, 32, 64), "norm_num_groups": 8, "cross_attention_dim": 12,
    "attention_head_dim": (2, 4, 8), "layers_per_block": 2, "transformer_layers_per_block": (1, 2, 3),
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 4 * 6 + 5,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip


@pytest.fixture(scope="module")
def teachers():
    torch.manual_seed(0)
    made = {"sd15": UNet2DConditionModel(**SD15), "sdxl": UNet2DConditionModel(**SDXL)}
    made["emoji"] = UNet2DConditionModel.from_pretrained(EMOJI)
    return {name: net.eval() for name, net in made.items()}


@torch.no_grad()
def run(net, seed=1):
    g = torch.Generator().manual_seed(seed)
    c = net.config
    x = torch.randn(1, c.in_channels, 8, 8, generator=g)
    extra = None
    if c.addition_embed_type == "text_time":
        extra = {"text_embeds": torch.randn(1, 5, generator=g), "time_ids": torch.arange(6.0)[None]}
    text = torch.randn(1, 3, c.cross_attention_dim, generator=g)
    return net(x, torch.tensor([500.0]), text, added_cond_kwargs=extra).sample


def pairs_of(student, teacher, blocks):
    """Hidden states of the latest passes of both, the student's beside the teacher's it imitates."""
    return [(student[mine], teacher[theirs]) for mine, theirs in blocks.items()]


@pytest.mark.parametrize("name", ["sd15", "sdxl", "emoji"])
def test_removing_nothing_gives_an_identical_network_and_no_feature_loss(teachers, name):
    teacher = teachers[name]
    student = make_student(teacher, "full")
    assert student.parameters_removed == 0
    assert student.copied == {n: n for n in teacher.state_dict()}
    assert not student.sliced
    assert not student.fresh
    blocks = matching_blocks(student.unet, teacher)
    with HiddenStates(student.unet, list(blocks)) as mine, HiddenStates(teacher, list(blocks.values())) as theirs:
        assert float((run(student.unet) - run(teacher)).abs().max()) == 0
    pairs = pairs_of(mine, theirs, blocks)
    assert len(pairs) == 2 * len(teacher.down_blocks) + 1
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not any(m._forward_hooks for m in student.unet.modules())


@pytest.mark.parametrize("name", ["sd15", "sdxl", "emoji"])
@pytest.mark.parametrize("kind", ["base", "small", "tiny"])
def test_what_is_copied_equals_the_teachers_and_diffusers_loads_it(teachers, name, kind, tmp_path):
    teacher = teachers[name]
    student = make_student(teacher, kind)
    print(name, kind, student)
    mine, theirs = student.unet.state_dict(), teacher.state_dict()
    assert set(student.copied) | set(student.sliced) == set(mine)
    assert all(torch.equal(mine[a], theirs[b]) for a, b in student.copied.items())
    removed = set(theirs) - set(student.copied.values()) - set(student.sliced.values())
    assert len(set(student.copied.values())) == len(student.copied), "no tensor of the teacher serves twice"
    lost = sum(theirs[n].numel() for n in removed)
    shrunk = sum(theirs[b].numel() - mine[a].numel() for a, b in student.sliced.items())
    assert student.parameters_removed == lost + shrunk == count_parameters(teacher) - count_parameters(student.unet)
    assert (student.unet.mid_block is None) == (kind in ("small", "tiny"))
    student.unet.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path, use_safetensors=True)
    made = run(student.unet)
    assert made.shape == run(teacher).shape
    torch.testing.assert_close(run(again), made, atol=1e-5, rtol=0)


def test_the_map_by_hand(teachers):
    """SD1.5: layer 0 of each down stage, layers 0 and 2 of each up stage; tiny starts at the second up stage."""
    base = make_student(teachers["sd15"], "base")
    assert base.cut.down == ((0,),) * 4
    assert base.cut.up == ((0, 2),) * 4
    assert base.cut.mid
    assert base.copied["up_blocks.1.attentions.1.norm.weight"] == "up_blocks.1.attentions.2.norm.weight"
    assert base.copied["up_blocks.0.upsamplers.0.conv.weight"] == "up_blocks.0.upsamplers.0.conv.weight"
    assert not any(".resnets.1." in n for n in base.copied if n.startswith("down"))
    tiny = make_student(teachers["sd15"], "tiny")
    assert (tiny.cut.down, tiny.cut.up, tiny.cut.mid) == (((0,),) * 3, ((), (0, 2), (0, 2), (0, 2)), False)
    assert tiny.copied["up_blocks.0.resnets.1.conv1.weight"] == "up_blocks.1.resnets.2.conv1.weight"
    assert "down_blocks.2.downsamplers.0.conv.weight" not in tiny.copied
    assert not tiny.sliced, "the two deepest stages are of one width"
    counts = [make_student(teachers["sd15"], kind).parameters for kind in ("full", "base", "small", "tiny")]
    assert counts == sorted(set(counts), reverse=True)


def test_real_sizes_are_the_published_ones():
    """Billions of parameters of Stable Diffusion 1's UNet and of BK-SDM's three, as its authors round them: up."""
    widths = {"block_out_channels": (320, 640, 1280, 1280), "norm_num_groups": 32, "cross_attention_dim": 768}
    with torch.device("meta"):
        teacher = UNet2DConditionModel(**{**SD15, **widths, "attention_head_dim": 8})
        for kind, published in (("full", 0.86), ("base", 0.58), ("small", 0.49), ("tiny", 0.33)):
            config = student_config(teacher.config, make_cut(teacher.config, kind))
            count = count_parameters(UNet2DConditionModel.from_config(config))
            print(kind, f"{count:,}")
            assert math.ceil(count / 1e7) / 100 == published


def test_layers_are_chosen_evenly_for_other_depths():
    config = {**SD15, "mid_block_type": "UNetMidBlock2DCrossAttn"}
    cut = make_cut({**config, "layers_per_block": (1, 2, 3, 4)}, "base")
    assert cut.down == ((0,), (0,), (0, 2), (0, 2))
    assert cut.up == ((0, 2, 4), (0, 2, 3), (0, 2), (0, 1))


def test_a_student_keeps_only_the_transformer_layers_of_what_stays(teachers):
    for name in ("down_blocks.2.attentions.0", "up_blocks.0.attentions.1"):
        assert len(make_student(teachers["sdxl"], "base").unet.get_submodule(name).transformer_blocks) == 3
    assert make_student(teachers["sdxl"], "tiny").unet.config.attention_head_dim == [2, 4]


def test_tiny_takes_a_slice_where_the_deepest_stage_was_wider(teachers):
    """The first up layer read 64 channels from below and 32 of the skip; now 32 and 32."""
    student = make_student(teachers["sdxl"], "tiny")
    entry = ("conv1.weight", "conv_shortcut.weight", "norm1.bias", "norm1.weight")
    assert sorted(student.sliced) == [f"up_blocks.0.resnets.0.{n}" for n in entry]
    theirs = teachers["sdxl"].up_blocks[1].resnets[0].conv1.weight
    due = torch.cat([theirs[:, :32], theirs[:, 64:]], 1)
    assert torch.equal(student.unet.up_blocks[0].resnets[0].conv1.weight, due)


@pytest.mark.parametrize(("name", "width", "channels", "heads"), [
    ("sd15", 0.75, [16, 24, 40, 40], 4), ("sdxl", 0.5, [8, 16, 32], [1, 2, 4]), ("emoji", 0.75, [48, 96, 144], 4),
])  # fmt: skip
def test_narrow_students_keep_groups_and_heads_whole(teachers, name, width, channels, heads, tmp_path):
    student = make_student(teachers[name], "base", width)
    print(name, width, student)
    assert list(student.unet.config.block_out_channels) == channels
    assert student.unet.config.attention_head_dim == heads
    assert student.sliced
    student.unet.save_pretrained(tmp_path)
    torch.testing.assert_close(run(UNet2DConditionModel.from_pretrained(tmp_path)), run(student.unet), atol=1e-5, rtol=0)
    random = make_student(teachers[name], "base", width, "random", seed=3)
    assert (len(random.fresh), random.copied, random.sliced) == (len(random.unet.state_dict()), {}, {})
    again = make_student(teachers[name], "base", width, "random", seed=3)
    assert torch.equal(run(random.unet), run(again.unet))
    assert student.parameters == random.parameters < student.teacher_parameters


def test_slices_by_hand():
    old = {"block_out_channels": [4, 8], "attention_head_dim": 2}
    new = {"block_out_channels": [4, 4], "attention_head_dim": 2, "layers_per_block": [1, 1]}
    rows = torch.arange(8.0)[:, None].expand(8, 8)
    q = sliced("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight", rows, (4, 4), old, new)
    assert q[:, 0].tolist() == [0, 1, 4, 5], "two heads of 4, the first 2 of each"
    out = sliced("mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.weight", rows.T, (4, 4), old, new)
    assert out[0].tolist() == [0, 1, 4, 5]
    gate = sliced("mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.bias", torch.arange(64.0), (32,), old, new)
    assert gate.tolist() == [*range(16), *range(32, 48)]
    skip = sliced("up_blocks.1.resnets.0.norm1.weight", torch.arange(12.0), (8,), old, new)
    assert skip.tolist() == [0, 1, 2, 3, 8, 9, 10, 11], "4 of the 8 from below, then the skip connection"


def test_a_narrow_time_embedding_reads_the_same_frequencies():
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.tensor([37.0, 500.0])
    wide, narrow = (get_timestep_embedding(t, n, flip_sin_to_cos=True, downscale_freq_shift=0) for n in (16, 8))
    old, new = {"block_out_channels": [16]}, {"block_out_channels": [8]}
    weight = wide[:1].expand(64, 16)
    made = sliced("time_embedding.linear_1.weight", weight, (32, 8), old, new)
    torch.testing.assert_close(made[0], narrow[0], atol=1e-5, rtol=0)


def test_hidden_states_match_in_shape_and_carry_gradients(teachers):
    teacher = teachers["sdxl"]
    for kind, number in (("base", 7), ("small", 6), ("tiny", 4)):
        student = make_student(teacher, kind)
        blocks = matching_blocks(student.unet, teacher)
        with HiddenStates(student.unet, list(blocks)) as mine, HiddenStates(teacher, list(blocks.values())) as theirs:
            run(teacher)
            run.__wrapped__(student.unet)
        pairs = pairs_of(mine, theirs, blocks)
        assert len(pairs) == number
        sum((a - b).square().mean() for a, b in pairs).backward()
        assert student.unet.conv_in.weight.grad is not None
        assert torch.equal(pairs[0][0], pairs[0][1]) is False


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda t: make_student(t, "nano"), SettingError, "kind='nano'"),
        (lambda t: make_student(t, "base", 1.5), SettingError, r"width=1.5 .*0 < width <= 1"),
        (lambda t: make_student(t, "base", weights="pruned"), SettingError, "weights='pruned'"),
        (lambda t: make_cut({**t.config, "down_block_types": ("AttnDownBlock2D",)}, "base"), ModelError, "AttnDownBlock2D"),
        (
            lambda t: make_cut({**t.config, "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}, "tiny"),
            SettingError,
            "only one",
        ),
        (
            lambda t: student_config({**t.config, "norm_num_groups": 64}, make_cut(t.config, "base"), 0.5),
            SettingError,
            "narrow",
        ),
    ],
)
def test_what_cannot_be_made_is_named(teachers, call, error, says):
    with pytest.raises(error, match=says):
        call(teachers["sd15"])
