"""Diffusers' pipelines, taken apart without a copy: the same tensors and pictures, the same fingerprints after a save."""

import json

import numpy as np
import pytest
import torch
from tiny_folders import SIZE, VP, model, unet
from tiny_pipes import diffusers_pipe

from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import ModelError, SettingError
from allaprima.core.seeds import noise_batch
from allaprima.models.cards.card import TextSettings
from allaprima.models.components.fingerprints import content_fingerprint
from allaprima.models.loading.from_pipelines import family_of
from allaprima.pipeline import AdaptivePipeline

FAMILIES = ("sd", "sdxl", "sd3", "flux")
PROMPTS, SEEDS = ["red fox", "a blue owl"], [11, 12]
TEXT = TextSettings(max_length=12, max_sequence_length=16)


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    made = {}
    for family in FAMILIES:
        made[family] = diffusers_pipe(family, model(family, tmp_path_factory.mktemp(family) / "model"))
        made[family].set_progress_bar_config(disable=True)
    return made


def small(pipes, family, **changes):
    made = AdaptivePipeline.from_pipelines(pipes[family], pipes[family], text=TEXT if family != "sdxl" else None, **changes)
    size = {"height": SIZE, "width": SIZE, "batch_size": 2, "student_steps": 2, "teacher_steps": 4, "teacher_guidance": 3.0}
    made.settings = made.settings.changed(**size)
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_no_weight_is_copied_and_diffusers_paints_the_same(pipes, family):
    pipe = pipes[family]
    assert family_of(pipe) == family
    ours = small(pipes, family)
    for part in ("vae", "text_encoder", ours.teacher.component):
        mine = dict(getattr(ours.student, part).named_parameters())
        theirs = dict(getattr(pipe, part).named_parameters())
        assert mine.keys() == theirs.keys()
        assert all(mine[k].data_ptr() == theirs[k].data_ptr() for k in mine)
    noise = noise_batch(SEEDS, "initial", [0, 0], ours.teacher.latent_shape(SIZE, SIZE))
    more = {"num_inference_steps": 4} if family in ("sd", "sdxl") else {"sigmas": [1.0, 0.75, 0.5, 0.25]}
    more |= {"max_sequence_length": 16} if family in ("sd3", "flux") else {}
    if family == "flux":
        from allaprima.models.families.flux import packed

        noise = packed(noise)
    due = pipe(PROMPTS, height=SIZE, width=SIZE, latents=noise, guidance_scale=3.0, output_type="np", **more).images
    solver = "ddim" if family in ("sd", "sdxl") else "euler"
    mine = ours(PROMPTS, seed=SEEDS, mode="teacher-only", teacher_solver=solver, output_type="np").images
    assert due.std() > 0.02, "pictures that show something are due"
    np.testing.assert_allclose(mine, due, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_are_what_the_pipelines_suggest(pipes, family):
    settings = AdaptivePipeline.from_pipelines(pipes[family], pipes[family]).settings
    assert settings.teacher_steps == {"sd": 50, "sdxl": 50, "sd3": 28, "flux": 28}[family]
    assert settings.teacher_guidance == {"sd": 7.5, "sdxl": 5.0, "sd3": 7.0, "flux": 3.5}[family]
    assert settings.teacher_solver == ("ddim" if family in ("sd", "sdxl") else "euler")
    assert settings.student_guidance == (3.5 if family == "flux" else 1.0), "flux dev's network reads its scale"
    assert (settings.height, settings.width) == ((SIZE, SIZE) if family != "flux" else (256, 256))
    given = AdaptivePipeline.from_pipelines(pipes[family], pipes[family], settings=CascadeSettings(), student_steps=2)
    assert (given.settings.student_steps, given.settings.teacher_steps) == (2, 20)


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_read_again_it_is_the_same(pipes, family, tmp_path):
    first = small(pipes, family)
    path = first.save_pretrained(tmp_path / "mine", license="Apache-2.0")
    again = AdaptivePipeline.from_pretrained(tmp_path / "mine")
    assert again.fingerprints() == first.fingerprints()
    assert again.settings == first.settings.changed(batch_size=16)
    assert not (tmp_path / "mine" / "student").exists(), "all of it is the teacher's"
    assert not [p for p in (tmp_path / "mine").rglob("*") if p.suffix in (".bin", ".pt")]
    assert not list(tmp_path.glob(".mine*"))
    text = path.read_text()
    assert str(tmp_path) not in text
    assert "share: [" in text
    run = {"seed": SEEDS, "mode": "refine-all", "output_type": "pt", "batch_size": 2, "teacher_guidance": 2.0}
    torch.testing.assert_close(again(PROMPTS, **run).images, first(PROMPTS, **run).images, atol=1e-5, rtol=0)
    # Read from its card it is saved by copying; and once more the same.
    again.save_pretrained(tmp_path / "other")
    assert AdaptivePipeline.from_pretrained(tmp_path / "other").fingerprints() == first.fingerprints()
    absent = {"text_encoder_3": None, "tokenizer_3": None} if family == "sd3" else {}
    loaded = type(pipes[family]).from_pretrained(tmp_path / "other" / "teacher", torch_dtype=torch.float32, **absent)
    assert content_fingerprint(loaded.vae) == first.teacher.fingerprints["vae"]
    changed = dict(again.teacher.vae.named_parameters())["decoder.conv_in.bias"]
    changed += 1
    assert content_fingerprint(again.teacher.vae) != first.teacher.fingerprints["vae"]


def own_student(pipes, folder, seed=5):
    import diffusers

    torch.manual_seed(seed)
    unet(folder / "unet", cross_attention_dim=8)
    parts = {**pipes["sd"].components, "unet": diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")}
    parts["scheduler"] = diffusers.LCMScheduler(**{k: v for k, v in VP.items() if k != "steps_offset"})
    return diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)


def test_a_student_of_its_own_shares_the_rest(pipes, tmp_path):
    student = own_student(pipes, tmp_path)
    first = AdaptivePipeline.from_pipelines(student, pipes["sd"], batch_size=2, teacher_steps=3)
    assert first.settings.student_solver == "lcm"
    first.save_pretrained(tmp_path / "mine")
    assert sorted(p.name for p in (tmp_path / "mine" / "student").iterdir()) == ["scheduler", "unet"]
    again = AdaptivePipeline.from_pretrained(tmp_path / "mine")
    assert again.fingerprints() == first.fingerprints()
    assert again.fingerprints()["student"] != again.fingerprints()["teacher"]
    assert again.student.vae is again.teacher.vae
    ours = first(PROMPTS, seed=SEEDS, mode="student-only", output_type="pt").images
    theirs = again(PROMPTS, seed=SEEDS, mode="student-only", output_type="pt", batch_size=2).images
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize("own_base", [False, True])
def test_a_lora_student_stays_a_lora(pipes, tmp_path, own_base):
    import peft

    student = own_student(pipes, tmp_path)
    if not own_base:
        student.unet.load_state_dict(pipes["sd"].unet.state_dict())
        student.scheduler = pipes["sd"].scheduler
    student.unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "conv1"], init_lora_weights=False))
    first = AdaptivePipeline.from_pipelines(student, pipes["sd"], batch_size=2, teacher_steps=3, student_steps=2)
    first.save_pretrained(tmp_path / "mine")
    kept = sorted(p.name for p in (tmp_path / "mine" / "student").iterdir())
    assert kept == (["pytorch_lora_weights.safetensors"] + (["scheduler", "unet"] if own_base else []))
    again = AdaptivePipeline.from_pretrained(tmp_path / "mine")
    assert again.fingerprints() == first.fingerprints()
    run = {"seed": SEEDS, "mode": "student-only", "output_type": "pt", "batch_size": 2}
    ours, theirs = first(PROMPTS, **run).images, again(PROMPTS, **run).images
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)
    student.unet.disable_adapters()
    plain = first(PROMPTS, **run).images
    assert float((plain - ours).abs().max()) > 1e-2, "the adapter shows"
    again.save_pretrained(tmp_path / "other")
    assert AdaptivePipeline.from_pretrained(tmp_path / "other").fingerprints() == first.fingerprints()


def test_what_does_not_fit_is_refused(pipes, tmp_path):
    with pytest.raises(ModelError, match="share no latents"):
        AdaptivePipeline.from_pipelines(pipes["sd"], pipes["sdxl"], level="steps")
    with pytest.raises(SettingError, match="level='both'"):
        AdaptivePipeline.from_pipelines(pipes["sd"], pipes["sd"], level="both")
    torch.manual_seed(9)
    other = diffusers_pipe("sd", model("sd", tmp_path / "m", seed=9))
    with pytest.raises(ModelError, match="text_encoder differ"):
        AdaptivePipeline.from_pipelines(other, pipes["sd"])
    other.unet.half()
    with pytest.raises(ModelError, match="float16"):
        AdaptivePipeline.from_pipelines(other, other)


def test_a_teacher_with_adapters_on_is_refused(pipes, tmp_path):
    import peft

    teacher = own_student(pipes, tmp_path)
    teacher.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(ModelError, match="fuse_lora"):
        AdaptivePipeline.from_pipelines(pipes["sd"], teacher)


def test_a_pipeline_of_another_task_is_not_saved(pipes, tmp_path):
    made = small(pipes, "sd")
    made.task = "edit"
    with pytest.raises(SettingError, match="can't be saved: save the one beneath"):
        made.save_pretrained(tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_the_bundled_pair_keeps_bytes_calibration_and_fingerprints(pipe, tmp_path):
    card = pipe.save_pretrained(tmp_path / "emoji", name="mine")
    again = AdaptivePipeline.from_pretrained(tmp_path / "emoji")
    assert again.fingerprints() == pipe.fingerprints()
    assert again.settings == pipe.settings
    assert again.card.name == "mine"
    assert not (card.parent / "student" / "vae").exists()
    request = {"seed": 3, "output_type": "pt", "batch_size": 1, "threshold": 2.0, "teacher_steps": 2}
    assert torch.equal(again("red apple, noto", **request).images, pipe("red apple, noto", **request).images)
    assert again.card.known_concepts() == pipe.card.known_concepts()
    with pytest.raises(SettingError, match="read from"):
        again.save_pretrained(tmp_path / "emoji")
    (tmp_path / "emoji" / "student" / "unet" / "config.json").write_text(json.dumps({}))
    with pytest.raises(ModelError, match="files changed"):
        again.save_pretrained(tmp_path / "third")


class FakeApi:
    def __init__(self):
        self.said = []

    def create_repo(self, repo_id, **how):
        self.said.append(("create", repo_id, how))

    def create_branch(self, repo_id, **how):
        self.said.append(("branch", repo_id, how))

    def upload_folder(self, *, folder_path, **how):
        self.said.append(("upload", {str(p.relative_to(folder_path)) for p in folder_path.rglob("*")}, how))
        return "commit"


def test_pushing_uploads_what_saving_writes(pipes, tmp_path):
    api = FakeApi()
    ours = small(pipes, "sd")
    assert ours.push_to_hub("me/tiny", private=True, revision="v1", api=api, license="Apache-2.0") == "commit"
    (_, repo, how), (_, _, branch), (_, files, upload) = api.said
    assert (repo, how["private"], how["exist_ok"], branch["branch"]) == ("me/tiny", True, True, "v1")
    assert upload["repo_id"] == "me/tiny"
    assert upload["revision"] == "v1"
    ours.save_pretrained(tmp_path / "tiny")
    assert files == {str(p.relative_to(tmp_path / "tiny")) for p in (tmp_path / "tiny").rglob("*")}
    with pytest.raises(ModelError, match="is not there"):
        AdaptivePipeline.from_pretrained(tmp_path / "nothing")


def test_a_repository_is_fetched_without_what_could_run_code(pipes, tmp_path, monkeypatch):
    import huggingface_hub

    small(pipes, "sd").save_pretrained(tmp_path / "tiny")
    asked = []

    def fake(repo_id, **how):
        asked.append((repo_id, how))
        return str(tmp_path / "tiny")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    assert AdaptivePipeline.from_pretrained("me/tiny", revision="v1").card.name == "tiny"
    assert asked[0][0] == "me/tiny"
    assert asked[0][1]["revision"] == "v1"
    assert not any(p.endswith((".bin", ".py", ".pt")) for p in asked[0][1]["allow_patterns"])


def test_the_call_is_diffusers(pipes):
    ours = small(pipes, "sd")
    pil = ours(PROMPTS, seed=SEEDS, mode="refine-all", num_images_per_prompt=1).images
    array = ours(PROMPTS, seed=SEEDS, mode="refine-all", output_type="np").images
    (tensor,) = ours(PROMPTS, seed=SEEDS, mode="refine-all", output_type="pt", return_dict=False)
    assert array.shape == (2, SIZE, SIZE, 3)
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(np.asarray(pil[0]), (array[0] * 255).round().astype(np.uint8))
    generators = [torch.Generator().manual_seed(k) for k in (1, 2)]
    drawn = ours(PROMPTS, generator=generators, mode="student-only", output_type="pt").results
    assert [r.request.seed for r in drawn] != SEEDS
    with pytest.raises(SettingError, match="output_type='latent'"):
        ours(PROMPTS, output_type="latent")


def test_a_callback_sees_every_step_and_may_change_latents(pipes):
    ours, seen = small(pipes, "sd"), []

    def look(pipe, step, timestep, tensors):
        assert pipe is ours
        seen.append((step, tuple(tensors["latents"].shape), len(timestep)))

    plain = ours(PROMPTS, seed=SEEDS, mode="refine-all", output_type="pt").images
    again = ours(PROMPTS, seed=SEEDS, mode="refine-all", output_type="pt", callback_on_step_end=look).images
    assert torch.equal(plain, again)
    assert [s for s, _, _ in seen] == list(range(2 + 4))
    assert {shape for _, shape, _ in seen} == {(2, 4, SIZE // 2, SIZE // 2)}
    changed = ours(
        PROMPTS, seed=SEEDS, mode="refine-all", output_type="pt",
        callback_on_step_end=lambda p, s, t, k: {"latents": k["latents"] * (0 if s == 5 else 1)},
    ).images  # fmt: skip
    blank = ours.teacher.decode(torch.zeros(2, 4, SIZE // 2, SIZE // 2))
    torch.testing.assert_close(changed, blank)

    class StopError(Exception):
        pass

    def stop(*_):
        raise StopError

    with pytest.raises(StopError):
        ours(PROMPTS, seed=SEEDS, mode="refine-all", callback_on_step_end=stop)
    with pytest.raises(SettingError, match="'latents' can be had"):
        ours(PROMPTS, callback_on_step_end=look, callback_on_step_end_tensor_inputs=["prompt_embeds"])
