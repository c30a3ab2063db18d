"""Family `z-image`: folders in the published format paint what diffusers paints, Z-Image and Z-Image-Turbo, in a cascade."""

import json

import pytest
import torch
from tiny_language import SIDE, card, z_image

from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import ModelError, PromptError, SettingError
from allaprima.core.seeds import noise_batch
from allaprima.diffusion.noising import Strength, Variance
from allaprima.models.cards.card import TextSettings, load_card
from allaprima.models.families.z_image import load_z_image
from allaprima.models.loading.pair import load_pair
from allaprima.pipeline import AdaptivePipeline

# One prompt of up to 32 tokens and one of more: diffusers pads captions to whole 32s, and the shorter to the longer.
PROMPTS, SEEDS, LENGTH = ["red fox", "a blue owl at sea, and a hut on the hill"], [11, 12], 64
SETTINGS = CascadeSettings(
    student_steps=2, teacher_steps=4, student_guidance=1, teacher_guidance=4, batch_size=2, height=SIDE, width=SIDE,
    sigma=Variance(0.5), teacher_solver="euler", student_solver="euler",
)  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("z")
    z_image(folder / "teacher", shift=6.0)
    z_image(folder / "student", seed=1)
    euler = {"solver": "euler"}
    return card(folder, "z-image", {**euler, "guidance_scale": 1.0}, euler, text={"max_sequence_length": LENGTH})


@pytest.fixture(scope="module")
def pair(path):
    return load_pair(load_card(path))


def theirs(path, who, pair, name="ZImagePipeline"):
    import diffusers

    parts = {k: getattr(pair.teacher, k) for k in ("vae", "text_encoder", "tokenizer")}
    made = getattr(diffusers, name).from_pretrained(path.parent / who, torch_dtype=torch.float32, **parts)
    made.set_progress_bar_config(disable=True)
    return made


def asked(size=(SIDE, SIDE), **more):
    return {
        "prompt": list(PROMPTS), "height": size[0], "width": size[1], "max_sequence_length": LENGTH, "output_type": "np",
        **more,
    }  # fmt: skip


def due_of(pipeline, **ask):
    # Diffusers writes its chat into the list of prompts that it is given.
    ask["prompt"] = list(ask["prompt"])
    return torch.from_numpy(pipeline(**ask).images).permute(0, 3, 1, 2)


def noise_of(pair, size=(SIDE, SIDE)):
    return noise_batch(SEEDS, "initial", [0, 0], pair.teacher.latent_shape(*size))


def paint(pair, prompts=PROMPTS, seeds=SEEDS, **changes):
    out = AdaptivePipeline(pair.student, pair.teacher, None, SETTINGS)(prompts, seed=seeds, **changes)
    return torch.stack([r.image for r in out.results])


@pytest.mark.parametrize("size", [(SIDE, SIDE), (SIDE, 2 * SIDE)])
def test_the_teacher_is_diffusers(pair, path, size):
    """A scale of 4 here is 3 there: theirs counts from the conditional prediction."""
    ask = asked(size, latents=noise_of(pair, size), num_inference_steps=4, guidance_scale=3.0, negative_prompt=["grey", ""])
    due = due_of(theirs(path, "teacher", pair), **ask)
    changes = {"mode": "teacher-only", "height": size[0], "width": size[1], "negative_prompt": ["grey", ""]}
    assert due.std() > 0.02, "pictures that show something are due"
    torch.testing.assert_close(paint(pair, **changes), due, atol=1e-4, rtol=0)
    assert float((paint(pair, **changes, teacher_guidance=2.0) - due).abs().max()) > 1e-3, "the scale is read"


def test_turbo_is_diffusers(pair, path):
    pipeline = theirs(path, "student", pair)
    due = due_of(pipeline, **asked(latents=noise_of(pair), num_inference_steps=2, guidance_scale=0.0))
    torch.testing.assert_close(paint(pair, mode="student-only"), due, atol=1e-4, rtol=0)
    assert float((paint(pair, mode="teacher-only", teacher_steps=2, teacher_guidance=1.0) - due).abs().max()) > 1e-3


@pytest.mark.parametrize(("steps", "strength"), [(4, 0.5), (5, 0.6)])
def test_edits_and_refining_are_diffusers_image_to_image(pair, path, steps, strength, monkeypatch):
    """An edit is the end of the teacher's plan; a draft is refined from the same time, in as many steps."""
    pipeline, shape = theirs(path, "teacher", pair, "ZImageImg2ImgPipeline"), pair.teacher.latent_shape(SIDE, SIDE)
    place = "diffusers.pipelines.z_image.pipeline_z_image_img2img.randn_tensor"
    pictures = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    ask = asked(num_inference_steps=steps, strength=strength, guidance_scale=3.0)
    monkeypatch.setattr(place, lambda *a, **k: noise_batch(SEEDS, "initial", [0, 0], shape))
    # Latents as the picture, which the autoencoder's mean is told to be.
    scale, shift = pair.teacher.vae.config.scaling_factor, pair.teacher.vae.config.shift_factor
    given = [pair.teacher.encode_images(pictures)]
    monkeypatch.setattr(
        "diffusers.pipelines.z_image.pipeline_z_image_img2img.retrieve_latents",
        lambda found, generator=None: given[0] / scale + shift,
    )
    due = due_of(pipeline, image=pictures, **ask)
    mine = paint(pair, mode="teacher-only", image=list(pictures), strength=strength, teacher_steps=steps)
    torch.testing.assert_close(mine, due, atol=1e-4, rtol=0)

    taken, real = [], type(pair.student).decode
    with monkeypatch.context() as listening:
        listening.setattr(type(pair.student), "decode", lambda self, z: (taken.append(z.clone()), real(self, z))[1])
        paint(pair, mode="student-only")
    given[0] = taken[0]
    monkeypatch.setattr(place, lambda *a, **k: noise_batch(SEEDS, "rollback", [0, 0], shape))
    due = due_of(pipeline, image=pictures, **ask)
    mine = paint(pair, mode="refine-all", sigma=Strength(strength), teacher_steps=round(steps * strength))
    torch.testing.assert_close(mine, due, atol=1e-4, rtol=0)


def test_prompts_are_what_diffusers_makes_of_them(pair, path):
    with torch.no_grad():
        found, _ = theirs(path, "teacher", pair).encode_prompt(list(PROMPTS), max_sequence_length=LENGTH)
    cond = pair.teacher.condition(PROMPTS)
    for i, due in enumerate(found):
        n = int(cond.tensors["prompt_mask"][i].sum())
        assert n == len(due) == pair.teacher.token_count(PROMPTS[i])
        torch.testing.assert_close(cond.tensors["prompt_embeds"][i, :n], due, atol=1e-5, rtol=0)
    assert len(found[0]) <= 32 < len(found[1])


def test_a_picture_is_its_own_whoever_is_in_the_batch(pair):
    both = paint(pair, mode="refine-all")
    alone = torch.stack([paint(pair, [p], [s], mode="refine-all")[0] for p, s in zip(PROMPTS, SEEDS, strict=True)])
    assert torch.equal(both, alone)


class Likes:
    """An oracle that likes foxes."""

    name, fingerprint = "likes", "0"

    def score(self, images, prompts):
        return torch.tensor([1.0 if "fox" in p else 0.0 for p in prompts])


def test_the_adaptive_run_keeps_what_is_liked(pair):
    out = AdaptivePipeline(pair.student, pair.teacher, Likes(), SETTINGS)(PROMPTS, seed=SEEDS, threshold=0.5)
    assert out.decisions == ["accept", "refine"]
    images = torch.stack([r.image for r in out.results])
    assert torch.equal(images[0], paint(pair, mode="student-only")[0])
    assert torch.equal(images[1], paint(pair, mode="refine-all")[1])
    assert [c.evaluations.get("teacher", 0) for c in out.costs] == [0, 8]


def test_bad_input_is_named(pair, path, tmp_path):
    with pytest.raises(SettingError, match="multiples of 4"):
        pair.teacher.latent_shape(SIDE + 2, SIDE)
    with pytest.raises(PromptError, match="empty"):
        pair.teacher.check_prompt(" ")
    around = pair.teacher.token_count("")
    pair.teacher.check_prompt("a" * (LENGTH - around))
    with pytest.raises(PromptError, match="65 tokens; this text encoder reads 64"):
        pair.teacher.check_prompt("a" * (LENGTH - around + 1))
    folder, share = path.parent / "teacher", (pair.teacher, ("vae", "text_encoder", "tokenizer"))
    for text, says in (({"instruction": False}, "instruction"), ({"max_sequence_length": 513}, "513")):
        with pytest.raises(ModelError, match=says):
            load_z_image(folder, TextSettings(**text), *share)
    with pytest.raises(ModelError, match="adversarial"):
        pair.teacher.bottleneck(pair.teacher.network)
    config = folder / "scheduler" / "scheduler_config.json"
    kept = config.read_text()
    config.write_text(json.dumps({**json.loads(kept), "shift_terminal": 0.02}))
    try:
        with pytest.raises(ModelError, match="shift_terminal"):
            load_z_image(folder, TextSettings(), *share)
    finally:
        config.write_text(kept)
    omni = z_image(tmp_path / "omni", siglip_feat_dim=8)
    with pytest.raises(ModelError, match="Omni"):
        load_z_image(omni, TextSettings())
