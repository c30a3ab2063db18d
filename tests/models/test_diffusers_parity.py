"""The bundled folder is a diffusers pipeline: loaded and run by diffusers itself it paints what our teacher paints."""

from importlib import resources
from pathlib import Path

import torch

from allaprima.core.seeds import noise_batch

WEIGHTS = Path(str(resources.files("allaprima"))) / "bundled" / "emoji" / "weights"


def test_diffusers_own_pipeline_paints_the_teachers_picture(pipe):
    from diffusers import StableDiffusionPipeline

    import allaprima.models.autoencoder  # noqa: F401 (diffusers imports no module a folder names by itself)

    theirs = StableDiffusionPipeline.from_pretrained(WEIGHTS / "teacher", torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    prompts, seeds = ["red apple, noto", "owl, fluent 3d"], [11, 12]
    ours = pipe(
        prompts,
        seed=seeds,
        mode="teacher-only",
        teacher_solver="ddim",
        teacher_steps=6,
        batch_size=2,
        teacher_guidance=3.0,
        teacher_guidance_interval=None,
        teacher_last_time=None,  # what diffusers' pipeline knows
    )
    out = theirs(
        prompt_embeds=pipe.teacher.encode(prompts),
        negative_prompt_embeds=pipe.teacher.encode(["", ""]),
        latents=noise_batch(seeds, "initial", [0, 0], pipe.teacher.latent_shape(64, 64)),
        num_inference_steps=6,
        guidance_scale=3.0,
        output_type="np",
    )
    theirs_images = torch.from_numpy(out.images).permute(0, 3, 1, 2)
    mine = torch.stack([r.image for r in ours.results])
    assert theirs_images.shape == mine.shape
    assert float((theirs_images - mine).abs().max()) < 2e-3
