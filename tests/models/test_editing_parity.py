"""Editing by the teacher alone is what diffusers' own image-to-image and inpainting pipelines do."""

import pytest
import torch
from tiny_folders import SIZE, card

from allaprima.cascade.settings import CascadeSettings
from allaprima.core.seeds import noise_batch
from allaprima.models.cards.card import load_card
from allaprima.models.loading.pair import load_pair
from allaprima.pipeline import AdaptivePipeline

PROMPTS, SEEDS = ["red fox", "a blue owl"], [11, 12]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return card("sd", tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def pair(path):
    return load_pair(load_card(path))


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def settings(**changes):
    return CascadeSettings(
        student_steps=2, teacher_steps=7, teacher_guidance=3, batch_size=2, height=SIZE, width=SIZE, **changes
    )


def theirs(cls, path, scheduler=None, **more):
    import diffusers
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = path.parent / "teacher"
    made = getattr(diffusers, cls)(
        vae=AutoencoderKL.from_pretrained(folder / "vae"), unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False, **more,
    )  # fmt: skip
    if scheduler is not None:
        made.scheduler = getattr(diffusers, scheduler[0]).from_config(made.scheduler.config, **scheduler[1])
    made.set_progress_bar_config(disable=True)
    return made


def ask(pair, strength):
    """Arguments that leave nothing to chance: embeddings, and the noise that ours draws."""
    noise = noise_batch(SEEDS, "initial", [0, 0], pair.teacher.latent_shape(SIZE, SIZE))
    return noise, {
        "prompt_embeds": pair.teacher.encode(PROMPTS), "negative_prompt_embeds": pair.teacher.encode(["", ""]),
        "strength": strength, "num_inference_steps": 7, "guidance_scale": 3.0, "output_type": "np",
    }  # fmt: skip


def given(noise):
    """Diffusers draws image-to-image's noise itself: it is handed ours."""

    def draw(shape, generator=None, device=None, dtype=None, layout=None):
        assert tuple(shape) == tuple(noise.shape)
        return noise.to(dtype or noise.dtype)

    return draw


@pytest.mark.parametrize("strength", [0.3, 0.6, 0.95])
@pytest.mark.parametrize(
    ("solver", "scheduler"),
    [
        ("ddim", None),
        ("dpm_solver", ("DPMSolverMultistepScheduler", {"timestep_spacing": "linspace", "final_sigmas_type": "zero"})),
        ("unipc", ("UniPCMultistepScheduler", {"timestep_spacing": "linspace", "final_sigmas_type": "zero"})),
    ],
)
def test_image_to_image(pair, path, pictures, strength, solver, scheduler, monkeypatch):
    pipeline = theirs("StableDiffusionImg2ImgPipeline", path, scheduler)
    noise, asked = ask(pair, strength)
    monkeypatch.setattr("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img.randn_tensor", given(noise))
    # Latents as the picture: diffusers would draw from the autoencoder's distribution, ours takes its mean.
    due = torch.from_numpy(pipeline(image=pair.teacher.encode_images(pictures), **asked).images).permute(0, 3, 1, 2)
    out = AdaptivePipeline(pair.student, pair.teacher, None, settings(teacher_solver=solver))(
        PROMPTS, seed=SEEDS, image=list(pictures), strength=strength, mode="teacher-only"
    )
    mine = torch.stack([r.image for r in out.results])
    assert due.std() > 0.02, "pictures that show something are due"
    torch.testing.assert_close(mine, due, atol=1e-4, rtol=0)
    shown = pair.teacher.decode(pair.teacher.encode_images(pictures))
    assert float((mine - shown).abs().max()) > 1e-3, "something was changed"


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting(pair, path, pictures, strength, monkeypatch):
    pipeline = theirs("StableDiffusionInpaintPipeline", path)
    noise, asked = ask(pair, strength)
    monkeypatch.setattr("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint.randn_tensor", given(noise))
    monkeypatch.setattr(
        type(pipeline), "_encode_vae_image", lambda self, image, generator: pair.teacher.encode_images(image / 2 + 0.5)
    )
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, 4:12, 2:14] = 1
    due = pipeline(
        image=pictures * 2 - 1, mask_image=mask[None].expand(2, -1, -1, -1), height=SIZE, width=SIZE, **asked
    ).images
    out = AdaptivePipeline(pair.student, pair.teacher, None, settings(teacher_solver="ddim"))(
        PROMPTS, seed=SEEDS, image=list(pictures), mask_image=mask, strength=strength, mode="teacher-only"
    )
    mine, due = torch.stack([r.image for r in out.results]), torch.from_numpy(due).permute(0, 3, 1, 2)
    inside = mask.bool().expand_as(mine)
    torch.testing.assert_close(mine[inside], due[inside], atol=1e-4, rtol=0)
    assert torch.equal(mine[~inside], pictures[~inside]), "theirs decodes the rest, ours keeps it"


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_other_families_edit_too(family, tmp_path, pictures):
    pair = load_pair(load_card(card(family, tmp_path)))
    solver = "euler" if family == "sd3" else "ddim"
    pipe = AdaptivePipeline(pair.student, pair.teacher, None, settings(teacher_solver=solver))
    shown = pair.teacher.decode(pair.teacher.encode_images(pictures))
    away = []
    for strength in (0.15, 0.9):
        out = pipe(PROMPTS, seed=SEEDS, image=list(pictures), strength=strength, mode="teacher-only")
        away.append(float((torch.stack([r.image for r in out.results]) - shown).abs().mean()))
    assert 0 < away[0] < away[1]
