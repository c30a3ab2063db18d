"""Published kinds of `sd` and `sdxl` students and teachers: what diffusers paints with such folders, ours does."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny_folders import LENGTH, SIZE, model

from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import ModelError
from allaprima.core.seeds import noise_batch
from allaprima.models.cards.card import TextSettings
from allaprima.models.families.sd import load_sd
from allaprima.models.families.sdxl_refiner import load_either
from allaprima.pipeline import AdaptivePipeline

PROMPTS, SEEDS = ["red fox", "a blue owl"], [11, 12]
TEXT = TextSettings(max_length=LENGTH)
TINY = {
    "sample_size": SIZE // 2, "in_channels": 4, "out_channels": 4, "block_out_channels": (4, 8), "norm_num_groups": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 2, "layers_per_block": 1, "cross_attention_dim": 8,
}  # fmt: skip


def folder_of(family, path, unet=None, **scheduler):
    """A folder with another UNet, or another scheduler."""
    folder = model(family, path)
    if unet is not None:
        torch.manual_seed(1)
        UNet2DConditionModel(**{**TINY, **unet}).save_pretrained(folder / "unet")
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **scheduler}))
    return folder


def theirs(folder, pipeline="StableDiffusionPipeline", scheduler=None, **changes):
    import diffusers
    from diffusers import AutoencoderKL, DDIMScheduler
    from transformers import CLIPTextModel, CLIPTokenizer

    if "XL" in pipeline:
        made = getattr(diffusers, pipeline).from_pretrained(folder, torch_dtype=torch.float32)
    else:
        made = getattr(diffusers, pipeline)(
            vae=AutoencoderKL.from_pretrained(folder / "vae"), unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
            text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
            tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
    kind = type(made.scheduler) if scheduler is None else getattr(diffusers, scheduler)
    made.scheduler = kind.from_config(made.scheduler.config, **changes)
    made.set_progress_bar_config(disable=True)
    return made


def ours(made, mode="student-only", **changes):
    settings = CascadeSettings(
        **{"student_guidance": 1, "teacher_guidance": 3, "batch_size": 2, "height": SIZE, "width": SIZE, **changes}
    )
    out = AdaptivePipeline(made, made, None, settings)(PROMPTS, seed=SEEDS, mode=mode)
    return torch.stack([r.image for r in out.results])


def noise(made):
    return noise_batch(SEEDS, "initial", [0, 0], made.latent_shape(SIZE, SIZE))


def same(mine, images, bound=1e-4):
    due = torch.from_numpy(images).permute(0, 3, 1, 2)
    assert due.std() > 0.02, "pictures that show something are due"
    torch.testing.assert_close(mine, due, atol=bound, rtol=0)


def ask(made, **more):
    return {
        "prompt_embeds": made.encode(PROMPTS), "negative_prompt_embeds": made.encode(["", ""]), "latents": noise(made),
        "output_type": "np", "height": SIZE, "width": SIZE, **more,
    }  # fmt: skip


def handed(monkeypatch, module, purpose="student"):
    """Diffusers draws what ours draws."""
    count = iter(range(100))
    monkeypatch.setattr(
        f"diffusers.schedulers.{module}.randn_tensor",
        lambda shape, **_: noise_batch(SEEDS, purpose, [next(count)] * 2, tuple(shape[1:])),
    )


@pytest.mark.parametrize("zero", [False, True])
def test_sd2_predicts_v(tmp_path, zero):
    """SD 2.1's prediction, its text encoder cut below the last layer, and a terminal time without signal."""
    folder = folder_of("sd", tmp_path / "m", prediction_type="v_prediction", rescale_betas_zero_snr=zero)
    made = load_sd(folder, TEXT)
    assert (made.prediction, made.schedule.zero_terminal) == ("v_prediction", zero)
    pipeline = theirs(folder, timestep_spacing="trailing")
    mine = ours(made, "teacher-only", teacher_solver="ddim@trailing", teacher_steps=5)
    same(mine, pipeline(**ask(made, num_inference_steps=5, guidance_scale=3.0)).images)
    if zero:
        with pytest.raises(ModelError, match="rescale_betas_zero_snr"):
            load_sd(folder_of("sd", tmp_path / "e", rescale_betas_zero_snr=True), TEXT)


@pytest.mark.parametrize("steps", [1, 4])
def test_turbo(tmp_path, steps, monkeypatch):
    """SD-Turbo and SDXL-Turbo: ancestral Euler, trailing, without guidance."""
    folder = folder_of("sdxl", tmp_path / "m")
    made = load_either(folder, TextSettings())
    handed(monkeypatch, "scheduling_euler_ancestral_discrete")
    pipeline = theirs(folder, "StableDiffusionXLPipeline", "EulerAncestralDiscreteScheduler", timestep_spacing="trailing")
    due = pipeline(
        PROMPTS,
        latents=noise(made),
        height=SIZE,
        width=SIZE,
        num_inference_steps=steps,
        guidance_scale=0.0,
        output_type="np",
    ).images
    same(ours(made, student_solver="euler_ancestral@trailing", student_steps=steps), due)


@pytest.mark.parametrize("steps", [1, 4])
def test_lcm_reads_its_guidance(tmp_path, steps, monkeypatch):
    folder = folder_of("sd", tmp_path / "m", {"time_cond_proj_dim": 8})
    made = load_sd(folder, TEXT)
    handed(monkeypatch, "scheduling_lcm")
    pipeline = theirs(folder, "LatentConsistencyModelPipeline", "LCMScheduler", original_inference_steps=50)
    asked = ask(made, num_inference_steps=steps, guidance_scale=8.0, original_inference_steps=50)
    asked.pop("negative_prompt_embeds")
    same(ours(made, student_solver="lcm", student_steps=steps, student_guidance=8), pipeline(**asked).images)


@pytest.mark.parametrize("steps", [1, 4])
def test_hyper_sd_paints_with_tcd(tmp_path, steps, monkeypatch):
    folder = folder_of("sd", tmp_path / "m")
    made = load_sd(folder, TEXT)
    handed(monkeypatch, "scheduling_tcd")
    pipeline = theirs(folder, scheduler="TCDScheduler", original_inference_steps=50)
    due = pipeline(**ask(made, num_inference_steps=steps, guidance_scale=0.0, eta=1.0)).images
    same(ours(made, student_solver="tcd:1", student_steps=steps), due)


CUT = {
    "without its middle (BK-SDM small, tiny-sd)": {"mid_block_type": None},
    "several transformers a block, none in the middle (SSD-1B)": {
        "layers_per_block": 2, "transformer_layers_per_block": [1, [2, 1]], "mid_block_type": "UNetMidBlock2D",
        "reverse_transformer_layers_per_block": [[1, 2, 1], 1],
    },
    "as many layers as a block says": {"layers_per_block": (1, 2)},
}  # fmt: skip


@pytest.mark.parametrize("kind", CUT)
def test_networks_that_were_cut(tmp_path, kind):
    folder = folder_of("sd", tmp_path / "m", CUT[kind])
    made = load_sd(folder, TEXT)
    mine = ours(made, "teacher-only", teacher_solver="ddim", teacher_steps=3)
    same(mine, theirs(folder)(**ask(made, num_inference_steps=3, guidance_scale=3.0)).images)


def test_a_larger_picture_has_larger_latents(tmp_path):
    made = load_sd(folder_of("sd", tmp_path / "m"), TEXT)
    assert made.latent_shape(SIZE, SIZE) == (4, SIZE // 2, SIZE // 2)
    assert made.latent_shape(3 * SIZE // 2, 2 * SIZE) == (4, 3 * SIZE // 4, SIZE)
