"""A folder of each family, loaded and run by diffusers itself, paints what ours paints."""

import json

import pytest
import torch
import yaml
from tiny_folders import FAMILIES, SIZE, card

from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import ModelError, PromptError, SettingError
from allaprima.core.seeds import noise_batch
from allaprima.diffusion.noising import Variance
from allaprima.models.cards.card import TextSettings, load_card
from allaprima.models.components.latents import to_autoencoder, to_network
from allaprima.models.families.sd3 import load_sd3
from allaprima.models.families.sdxl_refiner import load_either
from allaprima.models.loading.pair import load_pair
from allaprima.models.multi_student.model import MultiStudent
from allaprima.models.multi_student.partition import fit_pca_median
from allaprima.models.multi_student.partition_file import save_partition
from allaprima.pipeline import AdaptivePipeline

PROMPTS, SEEDS = ["red fox", "a blue owl"], [11, 12]
TEXT = TextSettings(max_sequence_length=8)
SETTINGS = CascadeSettings(
    student_steps=2, teacher_steps=4, student_guidance=2, teacher_guidance=3, batch_size=2, height=SIZE, width=SIZE,
    sigma=Variance(0.5),
)  # fmt: skip


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    return {f: card(f, tmp_path_factory.mktemp(f)) for f in FAMILIES}


@pytest.fixture(scope="module")
def pairs(cards):
    return {f: load_pair(load_card(path)) for f, path in cards.items()}


def theirs(family, folder):
    from diffusers import StableDiffusion3Pipeline, StableDiffusionXLPipeline

    cls = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusion3Pipeline
    absent = (
        {} if family == "sdxl" or (folder / "text_encoder_3").is_dir() else {"text_encoder_3": None, "tokenizer_3": None}
    )
    made = cls.from_pretrained(folder, torch_dtype=torch.float32, **absent)
    made.set_progress_bar_config(disable=True)
    return made


def paint(pair, prompts=PROMPTS, seeds=SEEDS, **changes):
    out = AdaptivePipeline(pair.student, pair.teacher, None, SETTINGS)(prompts, seed=seeds, **changes)
    return torch.stack([r.image for r in out.results])


@pytest.mark.parametrize(("family", "solver"), [("sdxl", "ddim"), ("sd3", "euler")])
def test_diffusers_own_pipeline_paints_the_teachers_picture(pairs, cards, family, solver):
    teacher, pipeline = pairs[family].teacher, theirs(family, cards[family].parent / "teacher")
    # Whole times, as a grid without the quirk of shifting twice.
    more = {"num_inference_steps": 4} if family == "sdxl" else {"sigmas": [1.0, 0.75, 0.5, 0.25], "max_sequence_length": 8}
    noise = noise_batch(SEEDS, "initial", [0, 0], teacher.latent_shape(SIZE, SIZE))
    ask = {"prompt": PROMPTS, "height": SIZE, "width": SIZE, "latents": noise, "guidance_scale": 3.0, **more}
    due = torch.from_numpy(pipeline(**ask, output_type="np").images).permute(0, 3, 1, 2)
    mine = paint(pairs[family], mode="teacher-only", teacher_solver=solver)
    assert due.std() > 0.02, "pictures that show something are due"
    torch.testing.assert_close(mine, due, atol=1e-4, rtol=0)
    latents = pipeline(**ask, output_type="latent").images
    torch.testing.assert_close(teacher.decode(latents), due, atol=1e-5, rtol=0)
    assert float((paint(pairs[family], mode="teacher-only", teacher_solver=solver, teacher_guidance=2.0) - due).std()) > 1e-4


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_prompts_are_what_diffusers_makes_of_them(pairs, cards, family):
    teacher, pipeline = pairs[family].teacher, theirs(family, cards[family].parent / "teacher")
    args = (PROMPTS, None) if family == "sdxl" else (PROMPTS, None, None)
    more = {} if family == "sdxl" else {"max_sequence_length": 8}
    with torch.no_grad():
        embeds, negative, pooled, negative_pooled = pipeline.encode_prompt(*args, **more)
    cond, null = teacher.condition(PROMPTS), teacher.condition(["", ""])
    for mine, due in (
        (cond.tensors["prompt_embeds"], embeds),
        (cond.tensors["pooled"], pooled),
        (null.tensors["prompt_embeds"], negative),
        (null.tensors["pooled"], negative_pooled),
    ):
        torch.testing.assert_close(mine, due, atol=1e-5, rtol=0)
    assert (float(negative.abs().max()) == 0) == (family == "sdxl")
    assert torch.equal(teacher.encode(PROMPTS), cond.tensors["prompt_embeds"])
    assert float((cond.tensors["pooled"][0] - cond.tensors["pooled"][1]).abs().max()) > 0


def test_an_empty_prompt_is_encoded_where_the_pipeline_says_so(cards, pairs, tmp_path):
    path = card("sdxl", tmp_path, force_zeros_for_empty_prompt=False)
    teacher = load_pair(load_card(path)).teacher
    with torch.no_grad():
        due = theirs("sdxl", tmp_path / "teacher").encode_prompt(PROMPTS, None)
    null = teacher.condition(["", ""])
    torch.testing.assert_close(null.tensors["prompt_embeds"], due[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(null.tensors["pooled"], due[3], atol=1e-5, rtol=0)
    assert float(due[1].abs().max()) > 0
    assert teacher.fingerprint != pairs["sdxl"].teacher.fingerprint, "scores depend on it"


def test_time_ids_are_the_pictures_size_unless_given(pairs):
    teacher = pairs["sdxl"].teacher
    cond, x, t = teacher.condition(PROMPTS), torch.randn(2, 4, 8, 16), torch.tensor([500.0, 20.0])
    ids = torch.tensor([[16.0, 32, 0, 0, 16, 32]] * 2)
    given = type(cond)({**cond.tensors, "time_ids": ids})
    assert torch.equal(teacher.output(teacher.unet, x, t, given), teacher.output(teacher.unet, x, t, cond))
    other = type(cond)({**cond.tensors, "time_ids": ids + 64})
    assert not torch.equal(teacher.output(teacher.unet, x, t, other), teacher.output(teacher.unet, x, t, cond))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_is_its_own_whoever_is_in_the_batch(pairs, family):
    pair = pairs[family]
    both = paint(pair, mode="refine-all")
    assert torch.equal(paint(pair, PROMPTS[1:], SEEDS[1:], mode="refine-all")[0], both[1])
    with_negative = paint(pair, mode="refine-all", negative_prompt="grey")
    assert not torch.equal(with_negative, both)


@pytest.mark.parametrize("family", FAMILIES)
def test_identical_students_paint_the_very_bytes_of_the_single_one(pairs, cards, family, tmp_path):
    pair = pairs[family]
    partition = fit_pca_median(pair.student.encode(["red fox", "a blue owl", "sea", "hut"]), 2)
    several = MultiStudent.of([pair.student, pair.student], partition)
    mine = paint(type(pair)(several, pair.teacher), mode="student-only")
    assert torch.equal(mine, paint(pair, mode="student-only"))
    assert f"{pair.teacher.component}.1" in several.fingerprints
    save_partition(partition, tmp_path / "partition.safetensors")
    raw = yaml.safe_load(cards[family].read_text())
    student = {k: v for k, v in raw["student"].items() if k != "source"} | {
        "students": ["teacher", "teacher"], "resident": 1, "partition": str(tmp_path / "partition.safetensors"),
    }  # fmt: skip
    path = cards[family].with_name("several.yaml")
    path.write_text(yaml.safe_dump({**raw, "student": student}))
    from_card = load_pair(load_card(path))
    assert from_card.student.fingerprint == several.fingerprint
    assert torch.equal(paint(from_card, mode="student-only"), mine)


def test_components_are_shared(pairs):
    for family, pair in pairs.items():
        names = ["vae", "tokenizer", "text_encoder"] + (["tokenizer_2", "text_encoder_2"] if family != "sd" else [])
        assert all(getattr(pair.student, n) is getattr(pair.teacher, n) is not None for n in names)
        assert pair.student.network is not pair.teacher.network
        assert pair.student.fingerprint == pair.teacher.fingerprint


def test_t5_comes_after_clip(tmp_path):
    path = card("sd3", tmp_path, t5=True)
    teacher = load_pair(load_card(path)).teacher
    due = theirs("sd3", tmp_path / "teacher").encode_prompt(PROMPTS, None, None, max_sequence_length=8)[0]
    cond = teacher.condition(PROMPTS).tensors["prompt_embeds"]
    assert cond.shape == (2, 12 + 8, 16)
    torch.testing.assert_close(cond, due, atol=1e-5, rtol=0)
    assert float(cond[:, 12:].abs().min(-1).values.max()) > 0
    with pytest.raises(PromptError, match="reads 8"):
        teacher.check_prompt("zzzzzzzz")


def test_an_autoencoders_numbers_go_both_ways(pairs):
    x = torch.randn(2, 4, 3, 3)
    for pair in pairs.values():
        config = pair.teacher.vae.config
        torch.testing.assert_close(to_network(config, to_autoencoder(config, x)), x)


def test_refused(pairs, cards, tmp_path):
    for family in ("sdxl", "sd3"):
        teacher = pairs[family].teacher
        with pytest.raises(PromptError, match="empty"):
            teacher.check_prompt(" ")
        with pytest.raises(PromptError, match="reads 12"):
            teacher.check_prompt("zzzzzzzzzzzzzzz")
        assert teacher.token_count("red fox") == 6
        with pytest.raises(SettingError, match="15x16"):
            teacher.latent_shape(16, 15)
        raw = yaml.safe_load(cards[family].read_text())
        for change, says in (
            ({"student": {**raw["student"], "share": ["text_encoder_9"]}}, "text_encoder_9"),
            ({"text": {"zero_padding": True}}, "zero_padding"),
        ):
            (cards[family].parent / "bad.yaml").write_text(yaml.safe_dump({**raw, **change}))
            with pytest.raises(ModelError, match=says):
                load_pair(load_card(cards[family].parent / "bad.yaml"))
    folder = cards["sd3"].parent / "teacher"
    config = folder / "scheduler" / "scheduler_config.json"
    kept = config.read_text()
    config.write_text(json.dumps({**json.loads(kept), "use_dynamic_shifting": True}))
    with pytest.raises(ModelError, match="use_dynamic_shifting"):
        load_sd3(folder, TEXT, pairs["sd3"].teacher, ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    config.write_text(kept)
    teacher = pairs["sdxl"].teacher
    with pytest.raises(ModelError, match="refiner"):
        load_either(cards["sdxl"].parent / "teacher", TEXT, network=pairs["sd"].teacher.unet)
