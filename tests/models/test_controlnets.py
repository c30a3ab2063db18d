"""ControlNets: diffusers' own pipelines say the same; zero convolutions change nothing; the same net serves the student."""

import pytest
import torch
from diffusers import ControlNetModel
from test_editing_parity import theirs
from tiny_folders import SIZE, card

from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import ModelError, SettingError
from allaprima.core.seeds import noise_batch
from allaprima.diffusion.noising import Variance
from allaprima.models.cards.card import load_card
from allaprima.models.loading.pair import load_pair
from allaprima.pipeline import AdaptivePipeline

PROMPTS, SEEDS = ["red fox", "a blue owl"], [11, 12]
SETTINGS = CascadeSettings(
    student_steps=2, teacher_steps=5, student_guidance=2, teacher_guidance=3, teacher_solver="ddim", batch_size=2,
    height=SIZE, width=SIZE, sigma=Variance(0.5),
)  # fmt: skip


def net_for(family, folder, path, seed=0, loud=1.0):
    """A ControlNet of a tiny model's shape whose zero convolutions are not zero."""
    unet = load_pair(load_card(path)).teacher.unet
    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8))
    for p in net.parameters():
        torch.nn.init.normal_(p, 0, 0.2 * loud) if p.ndim > 1 else None
    if loud == 0:
        net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8))
    net.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    path = card(request.param, folder)
    nets = [net_for(request.param, folder / f"net{k}", path, seed=k) for k in range(2)]
    return request.param, path, nets


@pytest.fixture(scope="module")
def maps():
    return [torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(k)) for k in range(2)]


def pipe_of(path, nets=()):
    pair = load_pair(load_card(path))
    pipe = AdaptivePipeline(pair.student, pair.teacher, None, SETTINGS)
    return pipe.with_controlnets(nets) if nets else pipe


def paint(pipe, **given):
    out = pipe(PROMPTS, seed=SEEDS, **{"mode": "teacher-only", **given})
    return torch.stack([r.image for r in out.results])


def diffusers_paints(family, path, nets, images, scales):
    from diffusers import MultiControlNetModel

    loaded = [ControlNetModel.from_pretrained(n) for n in nets]
    net = loaded[0] if len(loaded) == 1 else MultiControlNetModel(loaded)
    if family == "sd":
        made = theirs("StableDiffusionControlNetPipeline", path, controlnet=net)
    else:
        from diffusers import StableDiffusionXLControlNetPipeline

        made = StableDiffusionXLControlNetPipeline.from_pretrained(
            path.parent / "teacher", controlnet=net, torch_dtype=torch.float32, add_watermarker=False
        )
        made.set_progress_bar_config(disable=True)
    teacher = load_pair(load_card(path)).teacher
    given = [i[None].expand(2, -1, -1, -1) for i in images]
    single, noise = len(nets) == 1, noise_batch(SEEDS, "initial", [0, 0], teacher.latent_shape(SIZE, SIZE))
    out = made(
        PROMPTS, image=given[0] if single else given, latents=noise,
        num_inference_steps=5, guidance_scale=3.0, controlnet_conditioning_scale=scales[0] if single else list(scales),
        height=SIZE, width=SIZE, output_type="np",
    )  # fmt: skip
    return torch.from_numpy(out.images).permute(0, 3, 1, 2)


@pytest.mark.parametrize("count", [1, 2])
def test_diffusers_own_pipelines_paint_the_same(world, maps, count):
    family, path, nets = world
    scales = (0.7, 1.3)[:count]
    due = diffusers_paints(family, path, nets[:count], maps[:count], scales)
    mine = paint(
        pipe_of(path, nets[:count]), control_image=maps[0] if count == 1 else maps[:count],
        controlnet_conditioning_scale=list(scales),
    )  # fmt: skip
    assert due.std() > 0.02, "pictures that show something are due"
    torch.testing.assert_close(mine, due, atol=1e-4, rtol=0)
    assert float((paint(pipe_of(path)) - due).abs().max()) > 1e-2, "it is heeded"


def test_zero_convolutions_change_nothing_and_scale_0_is_none(world, maps, tmp_path):
    family, path, nets = world
    plain = paint(pipe_of(path))
    fresh = net_for(family, tmp_path / "fresh", path, loud=0)
    torch.testing.assert_close(paint(pipe_of(path, [fresh]), control_image=maps[0]), plain, atol=1e-6, rtol=0)
    off = paint(pipe_of(path, nets[:1]), control_image=maps[0], controlnet_conditioning_scale=0.0)
    torch.testing.assert_close(off, plain, atol=1e-6, rtol=0)


def test_the_teachers_net_steers_the_student_too_alone_or_in_a_batch(world, maps):
    _, path, nets = world
    pipe = pipe_of(path, nets[:1])
    both = paint(pipe, control_image=maps, mode="refine-all")
    for i in range(2):
        one = pipe(PROMPTS[i], seed=SEEDS[i], control_image=maps[i], mode="refine-all")
        assert torch.equal(one.results[0].image, both[i])
    drafts = [paint(pipe, control_image=m, mode="student-only") for m in maps]
    assert float((drafts[0] - drafts[1]).abs().max()) > 1e-3
    account = pipe(PROMPTS, seed=SEEDS, control_image=maps, mode="student-only").results[0].row()
    assert account["controls"][0]["scale"] == 1.0


def test_fingerprints_know_of_it(world):
    _, path, nets = world
    a, b, plain = pipe_of(path, nets[:1]), pipe_of(path, nets[1:]), pipe_of(path)
    prints = [p.fingerprints()[side] for p in (a, b, plain) for side in ("student", "teacher")]
    assert len({prints[0], prints[2], prints[4]}) == 3
    assert len({prints[1], prints[3], prints[5]}) == 3


def test_what_does_not_fit_is_named(world, maps, tmp_path):
    family, path, nets = world
    pipe = pipe_of(path, nets[:1])
    for given, says in (
        ({}, "control_image is missing"),
        ({"control_image": [maps[0]] * 3}, "3 of control_image for 2 prompts"),
        ({"control_image": maps[0], "controlnet_conditioning_scale": [1.0, 1.0]}, "one a ControlNet"),
        ({"control_image": torch.zeros(3, 8, 8)}, "8x8"),
    ):
        with pytest.raises(SettingError, match=says):
            paint(pipe, **given)
    with pytest.raises(SettingError, match="means nothing without a ControlNet"):
        paint(pipe_of(path), control_image=maps[0])
    with pytest.raises(SettingError, match="no ControlNet 'nowhere'"):
        pipe_of(path, ["nowhere"])
    with pytest.raises(ModelError, match="ControlNetModel is due"):
        pipe_of(path, [path.parent / "teacher" / "unet"])
    other = "sdxl" if family == "sd" else "sd"
    foreign = net_for(other, tmp_path / "net", card(other, tmp_path / "other"))
    with pytest.raises(ModelError, match="another base"):
        pipe_of(path, [foreign])


def test_a_flow_transformer_takes_none(tmp_path, world):
    with pytest.raises(ModelError, match="sd and sdxl"):
        pipe_of(card("sd3", tmp_path), world[2][:1])
