"""Family `flux`: a folder in the published format paints what diffusers' FluxPipeline paints, dev and schnell, any size."""

import math

import pytest
import torch
from tiny_folders import SIZE, card

from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import ModelError, PromptError, SettingError
from allaprima.core.seeds import noise_batch
from allaprima.diffusion.guidance import ClassifierFreeGuidance, EmbeddedGuidance
from allaprima.diffusion.noising import Variance
from allaprima.models.cards.card import load_card
from allaprima.models.families.flux import packed, unpacked
from allaprima.models.loading.pair import load_pair
from allaprima.pipeline import AdaptivePipeline

PROMPTS, SEEDS = ["red fox", "blue owl"], [11, 12]
SETTINGS = CascadeSettings(
    student_steps=2, teacher_steps=4, student_guidance=2, teacher_guidance=3, batch_size=2, height=SIZE, width=SIZE,
    sigma=Variance(0.5), teacher_solver="euler",
)  # fmt: skip


@pytest.fixture(scope="module", params=[True, False], ids=["dev", "schnell"])
def world(request, tmp_path_factory):
    path = card("flux", tmp_path_factory.mktemp("flux"), dev=request.param)
    return request.param, path, load_pair(load_card(path))


def theirs(path):
    from diffusers import FluxPipeline

    made = FluxPipeline.from_pretrained(path.parent / "teacher", torch_dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


def paint(pair, prompts=PROMPTS, seeds=SEEDS, **changes):
    out = AdaptivePipeline(pair.student, pair.teacher, None, SETTINGS)(prompts, seed=seeds, **changes)
    return torch.stack([r.image for r in out.results])


@pytest.mark.parametrize("size", [(SIZE, SIZE), (SIZE, 2 * SIZE)])
def test_diffusers_own_pipeline_paints_the_same(world, size):
    dev, path, pair = world
    height, width = size
    noise = noise_batch(SEEDS, "initial", [0, 0], pair.teacher.latent_shape(height, width))
    # schnell reads no scale; above 1 its guidance is classifier-free, with the empty prompt.
    ask = {"guidance_scale": 3.0} if dev else {"true_cfg_scale": 3.0, "negative_prompt": ["", ""]}
    found = theirs(path)(
        prompt=PROMPTS, height=height, width=width, latents=packed(noise), num_inference_steps=4, max_sequence_length=8,
        output_type="np", **ask,
    ).images  # fmt: skip
    due = torch.from_numpy(found).permute(0, 3, 1, 2)
    mine = paint(pair, mode="teacher-only", height=height, width=width)
    assert due.std() > 0.02, "pictures that show something are due"
    torch.testing.assert_close(mine, due, atol=1e-4, rtol=0)
    other = paint(pair, mode="teacher-only", height=height, width=width, teacher_guidance=1.0)
    assert float((other - due).abs().max()) > 1e-4, "the scale is read"


def test_a_step_is_one_evaluation_where_guidance_is_read(world):
    dev, _, pair = world
    assert isinstance(pair.teacher.denoiser, EmbeddedGuidance if dev else ClassifierFreeGuidance)
    out = AdaptivePipeline(pair.student, pair.teacher, None, SETTINGS)("fox", seed=1, mode="teacher-only")
    assert out.costs[0].evaluations["teacher"] == (4 if dev else 8)


def test_prompts_are_what_diffusers_makes_of_them(world):
    _, path, pair = world
    with torch.no_grad():
        embeds, pooled, _ = theirs(path).encode_prompt(PROMPTS, None, max_sequence_length=8)
    cond = pair.teacher.condition(PROMPTS)
    torch.testing.assert_close(cond.tensors["prompt_embeds"], embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(cond.tensors["pooled"], pooled, atol=1e-5, rtol=0)


def test_packing_is_diffusers(world):
    from diffusers import FluxPipeline

    x = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(packed(x), FluxPipeline._pack_latents(x, 2, 4, 6, 8))
    assert torch.equal(unpacked(packed(x), 3, 4), x)


def test_the_shift_grows_with_the_picture(world):
    dev, _, pair = world
    grids = [pair.teacher.schedule_at(s, s).timesteps(4) for s in (SIZE, 2 * SIZE)]
    if not dev:
        assert grids[0] == grids[1] == [1.0, 0.75, 0.5, 0.25]
        return
    # 4 tokens a side at 16 pixels: 16 of 4..64 on the line from .5 to 1.15.
    shift = math.exp(0.5 + 0.65 * (16 - 4) / 60)
    assert grids[0][2] == pytest.approx(shift / (shift + 1))
    assert grids[1][2] == pytest.approx(math.exp(1.15) / (math.exp(1.15) + 1))


def test_drafts_are_refined_and_pictures_are_their_own(world):
    _, _, pair = world
    both = paint(pair, mode="refine-all")
    alone = torch.stack([paint(pair, [p], [s], mode="refine-all")[0] for p, s in zip(PROMPTS, SEEDS, strict=True)])
    assert torch.equal(both, alone)
    assert torch.isfinite(both).all()


def test_bad_input_is_named(world, tmp_path):
    _, path, pair = world
    with pytest.raises(SettingError, match="multiples of 4"):
        pair.teacher.latent_shape(SIZE + 2, SIZE)
    with pytest.raises(PromptError, match="8"):
        pair.teacher.check_prompt("a b c d e f g h i j k")
    import json

    config = path.parent / "teacher" / "scheduler" / "scheduler_config.json"
    kept = config.read_text()
    config.write_text(json.dumps({**json.loads(kept), "time_shift_type": "linear"}))
    try:
        with pytest.raises(ModelError, match="time_shift_type"):
            load_pair(load_card(path))
    finally:
        config.write_text(kept)
