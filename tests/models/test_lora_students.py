"""Published LoRA files beside the teacher's own weights: what diffusers' pipelines paint with them, ours paints."""

import pytest
import torch
import yaml
from safetensors.torch import save_file
from tiny_folders import SIZE, card
from tiny_lora import lora_file, pairs_of

from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import ModelError
from allaprima.core.seeds import noise_batch
from allaprima.diffusion.noising import Variance
from allaprima.models.cards.card import load_card
from allaprima.models.components.lora import adapted
from allaprima.models.loading.pair import load_pair
from allaprima.pipeline import AdaptivePipeline

PROMPTS, SEEDS = ["red fox", "a blue owl"], [11, 12]
SETTINGS = CascadeSettings(
    student_steps=3, teacher_steps=3, student_guidance=1, teacher_guidance=3, batch_size=2, height=SIZE, width=SIZE,
    student_solver="euler@trailing", teacher_solver="ddim", sigma=Variance(0.5),
)  # fmt: skip


def theirs(family, folder):
    import diffusers
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    if family == "sdxl":
        made = diffusers.StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    else:
        made = diffusers.StableDiffusionPipeline(
            vae=AutoencoderKL.from_pretrained(folder / "vae"), unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
            text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
            tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
    made.scheduler = diffusers.EulerDiscreteScheduler.from_config(made.scheduler.config, timestep_spacing="trailing")
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {f: card(f, tmp_path_factory.mktemp(f)) for f in ("sd", "sdxl", "sd3")}


def with_student(path, **student):
    raw = yaml.safe_load(path.read_text())
    base = {"steps": 3, "guidance_scale": 1.0, "solver": "euler@trailing", "license": "Apache-2.0"}
    made = path.with_name("lora.yaml")
    made.write_text(yaml.safe_dump({**raw, "student": {**base, **student}}))
    return load_pair(load_card(made))


def paint(pair, prompts=PROMPTS, seeds=SEEDS, **changes):
    out = AdaptivePipeline(pair.student, pair.teacher, None, SETTINGS)(prompts, seed=seeds, **changes)
    return torch.stack([r.image for r in out.results])


@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("names", ["peft", "kohya"])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_diffusers_paints_the_same_with_the_file(folders, family, names, scale):
    path = folders[family]
    pipeline = theirs(family, path.parent / "teacher")
    file = lora_file(path.parent / f"{names}.safetensors", pipeline.unet, names)
    pair = with_student(path, lora=file.name, lora_scale=scale)
    noise = noise_batch(SEEDS, "initial", [0, 0], pair.teacher.latent_shape(SIZE, SIZE))
    ask = {
        "height": SIZE,
        "width": SIZE,
        "latents": noise,
        "guidance_scale": 1.0,
        "num_inference_steps": 3,
        "output_type": "np",
    }
    if family == "sd":
        ask |= {"prompt_embeds": pair.teacher.encode(PROMPTS)}
    else:
        ask |= {"prompt": PROMPTS}
    plain = torch.from_numpy(pipeline(**ask).images).permute(0, 3, 1, 2)
    pipeline.load_lora_weights(str(path.parent), weight_name=file.name, adapter_name="few")
    pipeline.set_adapters(["few"], [scale])
    due = torch.from_numpy(pipeline(**ask).images).permute(0, 3, 1, 2)
    assert float((due - plain).abs().max()) > 1e-2, "the adapters show"
    torch.testing.assert_close(paint(pair, mode="student-only"), due, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3"])
def test_the_base_is_in_memory_once_and_none_the_wiser(folders, family):
    path = folders[family]
    plain = load_pair(load_card(path)).teacher
    file = lora_file(path.parent / "once.safetensors", plain.network, "peft", plain.component)
    pair = with_student(path, lora=file.name, **({"solver": "euler"} if family == "sd3" else {}))
    own = {p.data_ptr() for p in pair.teacher.network.parameters()}
    extra = [n for n, p in pair.student.network.named_parameters() if p.data_ptr() not in own]
    assert extra
    assert all(".lora_" in n for n in extra)
    assert len(own & {p.data_ptr() for p in pair.student.network.parameters()}) == len(own)
    assert not any(".lora_" in n for n, _ in pair.teacher.network.named_parameters())
    assert pair.student.vae is pair.teacher.vae
    assert pair.student.fingerprint != pair.teacher.fingerprint == plain.fingerprint
    # Asked in turn, each says to the bit what it says alone; the teacher what it said before there was a student.
    cond, x = plain.condition(PROMPTS), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.7, 0.2]) * (1 if family == "sd3" else 1000)
    say = [m.output(m.network, x, t, cond) for m in (plain, pair.student, pair.teacher, pair.student, pair.teacher)]
    assert torch.equal(say[0], say[2])
    assert torch.equal(say[2], say[4])
    assert torch.equal(say[1], say[3])
    assert float((say[0] - say[1]).abs().max()) > 1e-3


def test_jobs_of_student_and_teacher_interleave(folders):
    """A draft, its refinement and another's are what they are alone."""
    path = folders["sd"]
    file = lora_file(path.parent / "turns.safetensors", load_pair(load_card(path)).teacher.unet, "kohya")
    pair = with_student(path, lora=file.name)
    both = paint(pair, mode="refine-all")
    for i in range(2):
        assert torch.equal(paint(pair, PROMPTS[i : i + 1], SEEDS[i : i + 1], mode="refine-all")[0], both[i])
    assert not torch.equal(paint(pair, mode="student-only"), both)


def test_flux_takes_files_too(tmp_path):
    path = card("flux", tmp_path)
    teacher = load_pair(load_card(path)).teacher
    g, state = torch.Generator().manual_seed(5), {}
    for name, module in teacher.network.named_modules():
        if name.endswith(("attn.to_q", "attn.to_v")):
            down, up = pairs_of(module, g)
            state |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
    save_file(state, tmp_path / "f.safetensors")
    made = adapted(teacher.network, tmp_path / "f.safetensors", 0.5)
    layer = "transformer_blocks.0.attn.to_q"
    found, base = made.get_submodule(layer), teacher.network.get_submodule(layer)
    x = torch.randn(3, base.in_features, generator=g)
    a, b = (state[f"transformer.{layer}.lora_{k}.weight"] for k in "AB")
    torch.testing.assert_close(found(x), base(x) + 0.5 * x @ a.T @ b.T, atol=1e-5, rtol=0)


def test_a_whole_network_in_one_file(folders):
    """As SDXL-Lightning's UNets are published; its one-step one says the sample."""
    import diffusers

    path = folders["sdxl"]
    pipeline = theirs("sdxl", path.parent / "teacher")
    g = torch.Generator().manual_seed(3)
    state = {k: v + 0.05 * torch.randn(v.shape, generator=g) for k, v in pipeline.unet.state_dict().items()}
    save_file(state, path.parent / "whole.safetensors")
    pipeline.unet.load_state_dict(state)
    pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipeline.scheduler.config, prediction_type="sample")
    pair = with_student(path, network="whole.safetensors", prediction="sample", steps=1)
    noise = noise_batch(SEEDS, "initial", [0, 0], pair.teacher.latent_shape(SIZE, SIZE))
    due = pipeline(
        PROMPTS, height=SIZE, width=SIZE, latents=noise, guidance_scale=0.0, num_inference_steps=1, output_type="np"
    ).images
    mine = paint(pair, mode="student-only", student_steps=1)
    torch.testing.assert_close(mine, torch.from_numpy(due).permute(0, 3, 1, 2), atol=1e-4, rtol=0)
    assert pair.teacher.prediction == "epsilon"
    save_file({"a": torch.zeros(1)}, path.parent / "odd.safetensors")
    with pytest.raises(ModelError, match="doesn't fit the UNet2DConditionModel"):
        with_student(path, network="odd.safetensors")
