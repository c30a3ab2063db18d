"""Family `qwen-image`: a published folder paints what diffusers paints; Lightning's LoRA is a student of it."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_language import SIDE, card, qwen_image, qwen_scheduler

from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import ModelError, PromptError, SettingError
from allaprima.core.seeds import noise_batch
from allaprima.core.types import Condition
from allaprima.diffusion.guidance import TokenGuidance
from allaprima.diffusion.noising import Strength, Variance
from allaprima.diffusion.schedules import Flow
from allaprima.models.cards.card import TextSettings, load_card
from allaprima.models.families.flux import packed
from allaprima.models.families.qwen_image import load_qwen_image
from allaprima.models.loading.pair import load_pair
from allaprima.models.multi_student.model import MultiStudent
from allaprima.models.multi_student.partition import fit_pca_median
from allaprima.pipeline import AdaptivePipeline

# Of different lengths, so that diffusers pads one of them.
PROMPTS, SEEDS, LENGTH = ["red fox", "a blue owl at sea"], [11, 12], 32
SETTINGS = CascadeSettings(
    student_steps=2, teacher_steps=4, student_guidance=1, teacher_guidance=4, batch_size=2, height=SIDE, width=SIDE,
    sigma=Variance(0.5), teacher_solver="euler", student_solver="euler",
)  # fmt: skip


def lightning(file):
    """A LoRA of attention layers, named as Qwen-Image-Lightning's file names them."""
    g = torch.Generator().manual_seed(5)
    layers = {}
    for block in (0, 1):
        for name in ("to_q", "to_k", "to_v", "add_q_proj", "to_out.0"):
            at = f"transformer_blocks.{block}.attn.{name}"
            layers[f"{at}.lora_down.weight"] = torch.randn(4, 32, generator=g) * 0.5
            layers[f"{at}.lora_up.weight"] = torch.randn(32, 4, generator=g) * 0.5
            layers[f"{at}.alpha"] = torch.tensor(2.0)
    save_file(layers, file)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    qwen_image(folder / "teacher")
    qwen_scheduler(folder / "student", lightning=True)
    lightning(folder / "lightning.safetensors")
    student = {"lora": "lightning.safetensors", "solver": "euler", "guidance_scale": 1.0}
    return card(folder, "qwen-image", student, {"solver": "euler"}, text={"max_sequence_length": LENGTH})


@pytest.fixture(scope="module")
def pair(path):
    return load_pair(load_card(path))


def theirs(path, name="QwenImagePipeline"):
    import diffusers

    made = getattr(diffusers, name).from_pretrained(path.parent / "teacher", torch_dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


def asked(model, size=(SIDE, SIDE), **more):
    noise = noise_batch(SEEDS, "initial", [0, 0], model.latent_shape(*size))
    return {
        "prompt": PROMPTS, "height": size[0], "width": size[1], "latents": packed(noise), "max_sequence_length": LENGTH,
        "output_type": "np", **more,
    }  # fmt: skip


def due_of(pipeline, **ask):
    return torch.from_numpy(pipeline(**ask).images).permute(0, 3, 1, 2)


def paint(pair, prompts=PROMPTS, seeds=SEEDS, **changes):
    out = AdaptivePipeline(pair.student, pair.teacher, None, SETTINGS)(prompts, seed=seeds, **changes)
    return torch.stack([r.image for r in out.results])


@pytest.mark.parametrize("size", [(SIDE, SIDE), (SIDE, 2 * SIDE)])
def test_the_teacher_is_diffusers(pair, path, size):
    ask = asked(pair.teacher, size, num_inference_steps=4, true_cfg_scale=4.0, negative_prompt=["grey", "grey sea"])
    due = due_of(theirs(path), **ask)
    changes = {
        "mode": "teacher-only", "height": size[0], "width": size[1], "negative_prompt": ["grey", "grey sea"],
    }  # fmt: skip
    assert due.std() > 0.02, "pictures that show something are due"
    torch.testing.assert_close(paint(pair, **changes), due, atol=1e-4, rtol=0)
    assert float((paint(pair, **changes, teacher_guidance=2.0) - due).abs().max()) > 1e-3, "the scale is read"


def test_an_empty_negative_prompt_is_a_space(pair, path):
    due = due_of(theirs(path), **asked(pair.teacher, num_inference_steps=4, true_cfg_scale=4.0, negative_prompt=[" ", " "]))
    torch.testing.assert_close(paint(pair, mode="teacher-only"), due, atol=1e-4, rtol=0)
    plain = due_of(theirs(path), **asked(pair.teacher, num_inference_steps=4, true_cfg_scale=1.0))
    torch.testing.assert_close(paint(pair, mode="teacher-only", teacher_guidance=1.0), plain, atol=1e-4, rtol=0)


def test_lightnings_student_is_diffusers(pair, path):
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipeline = theirs(path)
    pipeline.load_lora_weights(str(path.parent), weight_name="lightning.safetensors")
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(path.parent / "student" / "scheduler")
    due = due_of(pipeline, **asked(pair.student, num_inference_steps=2, true_cfg_scale=1.0))
    torch.testing.assert_close(paint(pair, mode="student-only"), due, atol=1e-4, rtol=0)
    plain = due_of(theirs(path), **asked(pair.student, num_inference_steps=2, true_cfg_scale=1.0))
    assert float((plain - due).abs().max()) > 1e-3, "LoRA and scheduler matter"
    assert pair.student.schedule_at(SIDE, SIDE).timesteps(2) == pytest.approx([1, 0.75])
    assert pair.student.text_encoder is pair.teacher.text_encoder
    assert pair.student.fingerprint != pair.teacher.fingerprint


@pytest.mark.parametrize(("steps", "strength"), [(4, 0.5), (5, 0.6)])
def test_edits_and_refining_are_diffusers_image_to_image(pair, path, steps, strength, monkeypatch):
    """An edit is the end of the teacher's plan; a draft is refined from the same time, in as many steps."""
    module = "diffusers.pipelines.qwenimage.pipeline_qwenimage_img2img"
    pipeline, shape = theirs(path, "QwenImageImg2ImgPipeline"), pair.teacher.latent_shape(SIDE, SIDE)
    pictures = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    # Latents as the picture: diffusers would draw from the autoencoder's distribution, ours takes its mean.
    given = [pair.teacher.encode_images(pictures)]
    monkeypatch.setattr(type(pipeline), "_encode_vae_image", lambda self, image, generator: given[0][:, :, None])
    purpose = ["initial"]
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *a, **k: noise_batch(SEEDS, purpose[0], [0, 0], shape)[:, None])
    ask = {k: v for k, v in asked(pair.teacher).items() if k != "latents"}
    ask |= {"image": pictures, "num_inference_steps": steps, "strength": strength, "true_cfg_scale": 4.0}
    ask |= {"negative_prompt": [" ", " "]}
    due = due_of(pipeline, **ask)
    mine = paint(pair, mode="teacher-only", image=list(pictures), strength=strength, teacher_steps=steps)
    torch.testing.assert_close(mine, due, atol=1e-4, rtol=0)

    taken, real = [], type(pair.student).decode
    with monkeypatch.context() as listening:
        listening.setattr(type(pair.student), "decode", lambda self, z: (taken.append(z.clone()), real(self, z))[1])
        paint(pair, mode="student-only")
    given[0], purpose[0] = taken[0], "rollback"
    due = due_of(pipeline, **ask)
    mine = paint(pair, mode="refine-all", sigma=Strength(strength), teacher_steps=round(steps * strength))
    torch.testing.assert_close(mine, due, atol=1e-4, rtol=0)


def test_prompts_are_what_diffusers_makes_of_them(pair, path):
    with torch.no_grad():
        embeds, mask = theirs(path).encode_prompt(PROMPTS, max_sequence_length=LENGTH)
    cond = pair.teacher.condition(PROMPTS)
    length = embeds.shape[1]
    torch.testing.assert_close(cond.tensors["prompt_embeds"][:, :length], embeds, atol=1e-5, rtol=0)
    assert torch.equal(cond.tensors["prompt_embeds_mask"][:, :length], mask)
    assert float(cond.tensors["prompt_embeds"][:, length:].abs().max()) == 0
    assert int(cond.tensors["prompt_embeds_mask"].sum()) == int(mask.sum())
    assert pair.teacher.token_count(PROMPTS[0]) == int(mask[0].sum())


def test_the_schedule_is_published(pair):
    """Shift by size, and every grid of more than one step ends at the last time."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    for size in (SIDE, 2 * SIDE):
        flow = pair.teacher.schedule_at(size, size)
        tokens = (size // 8) ** 2
        scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
        scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=0.5 + 0.4 * (tokens - 4) / 124)
        assert flow.timesteps(4) == pytest.approx(scheduler.sigmas[:-1].tolist(), abs=1e-6)
        assert flow.timesteps(4)[-1] == pytest.approx(0.02)


def test_guidance_turns_a_velocity_and_keeps_its_length():
    u_c, u_u = (torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(i)) for i in (0, 1))

    def network(x, t, cond):
        return torch.cat([u_u, u_c]) if len(x) == 4 else u_c

    flow = Flow()
    guide = TokenGuidance(network, flow, "flow_prediction", 2)
    x, t = torch.zeros(2, 3, 4, 4), torch.full((2,), 0.5, dtype=torch.float64)
    e = torch.zeros(2, 1)
    told = Condition({"p": e, "negative_p": e, "guidance_scale": torch.tensor([3.0, 1.0])})
    u = -guide(x, t, told) / 0.5
    length = packed(u).norm(dim=-1)
    torch.testing.assert_close(length, packed(u_c).norm(dim=-1))
    turned = packed(u_u + 3 * (u_c - u_u))[0]
    torch.testing.assert_close(packed(u)[0] / length[0][:, None], turned / turned.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(u[1], u_c[1], msg="scale 1 is none")
    torch.testing.assert_close(guide.unguided(x, t, told), -0.5 * u_c)
    with pytest.raises(SettingError, match="negative"):
        guide(x, t, Condition({"p": e}))


def test_a_picture_is_its_own_whoever_is_in_the_batch(pair):
    both = paint(pair, mode="refine-all", negative_prompt=["", "grey"])
    for i, negative in ((0, ""), (1, "grey")):
        alone = paint(pair, PROMPTS[i : i + 1], SEEDS[i : i + 1], mode="refine-all", negative_prompt=negative)
        assert torch.equal(both[i], alone[0])


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


def test_several_students_keep_the_familys_guidance(pair):
    partition = fit_pca_median(pair.student.encode(["red fox", "a blue owl", "sea", "hut"]), 2)
    several = MultiStudent.of([pair.student, pair.student], partition)
    mine = paint(type(pair)(several, pair.teacher), mode="student-only", student_guidance=3.0)
    assert torch.equal(mine, paint(pair, mode="student-only", student_guidance=3.0))


def test_bad_input_is_named(pair, path, tmp_path):
    with pytest.raises(SettingError, match="multiples of 8"):
        pair.teacher.latent_shape(SIDE + 4, SIDE)
    with pytest.raises(PromptError, match="empty"):
        pair.teacher.check_prompt(" ")
    pair.teacher.check_prompt("a" * (LENGTH - 5))
    with pytest.raises(PromptError, match="33 tokens; this text encoder reads 32"):
        pair.teacher.check_prompt("a" * (LENGTH - 4))
    folder, share = path.parent / "teacher", (pair.teacher, ("vae", "text_encoder", "tokenizer"))
    for text, says in (({"instruction": True}, "instruction"), ({"attention_mask": True}, "attention_mask")):
        with pytest.raises(ModelError, match=says):
            load_qwen_image(folder, TextSettings(**text), *share)
    assert load_qwen_image(folder, TextSettings(max_sequence_length=1024), *share).condition(["a"]).tensors[
        "prompt_embeds"
    ].shape == (1, 1024, 16)  # fmt: skip
    edit = qwen_image(tmp_path / "edit", zero_cond_t=True)
    with pytest.raises(ModelError, match="editing"):
        load_qwen_image(edit, TextSettings())
    config = folder / "scheduler" / "scheduler_config.json"
    kept = config.read_text()
    config.write_text(json.dumps({**json.loads(kept), "use_karras_sigmas": True}))
    try:
        with pytest.raises(ModelError, match="use_karras_sigmas"):
            load_qwen_image(folder, TextSettings(), *share)
    finally:
        config.write_text(kept)
