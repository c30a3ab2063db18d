"""Family `flux`: edits and refined drafts are what diffusers' FluxImg2ImgPipeline makes of them at the same strength."""

import pytest
import torch
from tiny_folders import SIZE, card

from allaprima.cascade.settings import CascadeSettings
from allaprima.core.seeds import noise_batch
from allaprima.diffusion.noising import Strength
from allaprima.models.cards.card import load_card
from allaprima.models.loading.pair import load_pair
from allaprima.pipeline import AdaptivePipeline

PROMPTS, SEEDS = ["red fox", "blue owl"], [11, 12]
SETTINGS = CascadeSettings(
    student_steps=2, student_guidance=2, teacher_guidance=3, batch_size=2, height=SIZE, width=SIZE, teacher_solver="euler"
)


@pytest.fixture(scope="module", params=[True, False], ids=["dev", "schnell"])
def world(request, tmp_path_factory):
    path = card("flux", tmp_path_factory.mktemp("flux"), dev=request.param)
    return request.param, path, load_pair(load_card(path))


def paint(pair, **changes):
    out = AdaptivePipeline(pair.student, pair.teacher, None, SETTINGS)(PROMPTS, seed=SEEDS, **changes)
    return torch.stack([r.image for r in out.results])


@pytest.mark.parametrize(("steps", "strength"), [(4, 0.5), (5, 0.6)])
def test_image_to_image_at_the_same_strength(world, steps, strength, monkeypatch):
    from diffusers import FluxImg2ImgPipeline

    dev, path, pair = world
    pipeline = FluxImg2ImgPipeline.from_pretrained(path.parent / "teacher", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    shape = pair.teacher.latent_shape(SIZE, SIZE)
    pictures = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    given, purpose = [pair.teacher.encode_images(pictures)], ["initial"]
    # Latents as the picture: diffusers would draw from the autoencoder's distribution, ours takes its mean.
    monkeypatch.setattr(type(pipeline), "_encode_vae_image", lambda self, image, generator: given[0])
    monkeypatch.setattr(
        "diffusers.pipelines.flux.pipeline_flux_img2img.randn_tensor",
        lambda *a, **k: noise_batch(SEEDS, purpose[0], [0, 0], shape),
    )
    scale = {"guidance_scale": 3.0} if dev else {"true_cfg_scale": 3.0, "negative_prompt": ["", ""]}

    def due():
        found = pipeline(
            prompt=PROMPTS, image=pictures, strength=strength, num_inference_steps=steps, height=SIZE, width=SIZE,
            max_sequence_length=8, output_type="np", **scale,
        ).images  # fmt: skip
        return torch.from_numpy(found).permute(0, 3, 1, 2)

    mine = paint(pair, mode="teacher-only", image=list(pictures), strength=strength, teacher_steps=steps)
    torch.testing.assert_close(mine, due(), atol=1e-4, rtol=0)

    taken, real = [], type(pair.student).decode
    with monkeypatch.context() as listening:
        listening.setattr(type(pair.student), "decode", lambda self, z: (taken.append(z.clone()), real(self, z))[1])
        paint(pair, mode="student-only")
    given[0], purpose[0] = taken[0], "rollback"
    mine = paint(pair, mode="refine-all", sigma=Strength(strength), teacher_steps=round(steps * strength))
    torch.testing.assert_close(mine, due(), atol=1e-4, rtol=0)
    other = paint(pair, mode="refine-all", sigma=Strength(strength - 0.1), teacher_steps=round(steps * strength))
    assert float((other - due()).abs().max()) > 1e-3, "the strength is read"
