"""LoRA students: what trains, what is kept, and that diffusers' own loader paints with what is left in the folder."""

import sys
import warnings
from dataclasses import replace

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors.torch import load_file, save_file
from tiny import SCHEDULER, setup, tiny_model, tiny_unet

from allaprima.core.errors import ModelError, SettingError, TrainingError, UnsafeWeightsError
from allaprima.distill.methods import METHODS
from allaprima.distill.recipe import checked, read_recipe
from allaprima.distill.shared_copy import shared_copy
from allaprima.models.components.lora import FILE, fuse_lora, fused_fingerprint, save_lora

ALL = {"rank": 2, "alpha": 6}
LORA = {**ALL, "targets": ["to_q", "conv1"]}


def lora_bench(folder, method, recipe=None, **more):
    b = setup(folder, method, **more)
    changes = {"lora": LORA, **(recipe or {})}
    return replace(b, recipe=type(b.recipe).model_validate({**b.recipe.model_dump(), **changes}))


def run(b):
    module, options_class = METHODS[b.recipe.method].load()
    return module.run(b, checked(options_class, b.recipe.options, b.recipe.method))


@torch.no_grad()
def says(network):
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 3, 6, generator=g)
    return network.eval()(x, torch.tensor([20.0, 700.0]), text).sample


def adapters(network):
    return {n: p.detach().clone() for n, p in network.named_parameters() if ".lora_" in n}


def test_at_the_start_it_is_what_it_sits_on_and_shares_its_memory(tmp_path):
    notes = []
    b = replace(lora_bench(tmp_path, "consistency", {"lora": ALL}), note=notes.append)
    student, teacher = b.student(), b.teacher.unet
    assert student.training
    assert torch.equal(says(student), says(teacher))
    own = {p.data_ptr() for p in teacher.parameters()}
    trains = {n for n, p in student.named_parameters() if p.requires_grad}
    assert trains == set(adapters(student))
    assert all((p.data_ptr() in own) == (n not in trains) for n, p in student.named_parameters())
    assert {n.split(".lora_")[0].rsplit(".", 1)[-1] for n in trains} >= {"to_q", "conv1", "time_emb_proj", "0", "conv"}
    count = sum(p.numel() for n, p in student.named_parameters() if n in trains)
    assert f"LoRA of rank 2: {count:,} parameters train" in notes[0]
    copied = shared_copy(student)
    assert all((p.data_ptr() in own) == (n not in trains) for n, p in copied.named_parameters())
    torch.manual_seed(99)
    again = lora_bench(tmp_path, "consistency", {"lora": ALL}).student()
    assert all(torch.equal(v, adapters(again)[n]) for n, v in adapters(student).items()), "A follows from the seed"


CASES = [
    ("consistency", {}, {}),
    ("consistency", {}, {"lora": {**LORA, "dropout": 0.5}}),
    ("tsm", {}, {"start": "other"}),
    ("distribution_matching", {"generator_every": 1}, {}),
]


@pytest.mark.parametrize(("method", "options", "recipe"), CASES)
def test_only_adapters_train_are_kept_and_resume_to_the_bit(tmp_path, method, options, recipe):
    if "start" in recipe:
        tiny_unet(3).save_pretrained(tmp_path / "other")
        recipe = {"start": str(tmp_path / "other")}
    teacher = tiny_model()
    teacher.unet.to(memory_format=torch.channels_last)  # As `load_unet` lays it out; another layout has other bits.
    before = says(teacher.unet)
    more = {"options": options, "teacher": teacher, "max_train_steps": 2, "use_ema": 0.5}
    whole = run(lora_bench(tmp_path / "a", method, recipe, **more))
    assert torch.equal(says(teacher.unet), before)
    moved = {n for n, v in adapters(whole).items() if ".lora_B." in n and bool(v.any())}
    assert moved
    with pytest.raises(KeyboardInterrupt):
        run(lora_bench(tmp_path / "b", method, recipe, stop=1, **more))
    again = run(lora_bench(tmp_path / "b", method, recipe, **more))
    assert all(torch.equal(v, adapters(again)[n]) for n, v in adapters(whole).items())
    assert torch.equal(says(whole), says(again))
    name = "generator" if method == "distribution_matching" else "model"
    kept = [k for k in load_file(tmp_path / "a" / "checkpoint.safetensors") if k.startswith((f"{name}.", "ema."))]
    assert len({k.split(".")[1] if k.startswith("ema.") else name for k in kept}) == 1 + len(
        ["use", "target"] if method == "consistency" else ["use"]
    )
    assert all(".lora_" in k for k in kept)
    base = {n.replace(".base_layer", ""): v for n, v in whole.state_dict().items() if ".lora_" not in n}
    start = tiny_unet(3) if "start" in recipe else tiny_unet()
    assert all(torch.equal(v, base[n]) for n, v in start.state_dict().items())


def test_another_base_is_another_training(tmp_path):
    tiny_unet(3).save_pretrained(tmp_path / "start")
    b = lora_bench(tmp_path / "run", "tsm", {"start": str(tmp_path / "start")}, max_train_steps=1)
    run(b)
    tiny_unet(4).save_pretrained(tmp_path / "start")
    with pytest.raises(TrainingError, match=r"recipe\.base was"):
        run(b)
    tiny_unet(3).save_pretrained(tmp_path / "start")
    other = {"start": str(tmp_path / "start"), "lora": {**LORA, "rank": 3}}
    with pytest.raises(TrainingError, match=r"recipe\.lora\.rank was 2, now 3"):
        run(lora_bench(tmp_path / "run", "tsm", other, max_train_steps=1))


def test_diffusers_paints_with_the_file(tmp_path):
    tiny_unet().save_pretrained(tmp_path / "teacher" / "unet")
    made = run(lora_bench(tmp_path / "run", "consistency", {"lora": ALL}, use_ema=0.5, learning_rate=1e-1))
    due, plain = says(made), says(tiny_unet())
    assert float((due - plain).abs().max()) > 1e-2
    assert save_lora(made, tmp_path / "student") == tmp_path / "student" / FILE
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "teacher" / "unet", use_safetensors=True)
    others = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipe = StableDiffusionPipeline(
        unet=unet, scheduler=DDIMScheduler(**SCHEDULER), requires_safety_checker=False, **others
    )  # fmt: skip
    pipe.load_lora_weights(str(tmp_path / "student"))
    torch.testing.assert_close(says(pipe.unet), due, atol=1e-5, rtol=0)
    fused = fuse_lora(tiny_unet(), tmp_path / "student" / FILE)
    torch.testing.assert_close(says(fused), due, atol=1e-5, rtol=0)
    assert [n for n, _ in fused.named_parameters()] == [n for n, _ in tiny_unet().named_parameters()]
    file = tmp_path / "student" / FILE
    first = fused_fingerprint("abc", file)
    assert first not in ("abc", fused_fingerprint("abd", file))
    save_file({k: v * 2 for k, v in load_file(file).items()}, file)
    assert fused_fingerprint("abc", file) != first


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(ModelError, match="missing"):
        fuse_lora(tiny_unet(), tmp_path / FILE)
    with pytest.raises(UnsafeWeightsError, match="pickles"):
        fuse_lora(tiny_unet(), tmp_path / "pytorch_lora_weights.bin")
    (tmp_path / FILE).write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="doesn't fit UNet2DConditionModel"):
        fuse_lora(tiny_unet(), tmp_path / FILE)
    save_file({"text_encoder.q_proj.lora_A.weight": torch.zeros(2, 2)}, tmp_path / FILE)
    with pytest.raises(ModelError, match="it adapts text_encoder, and only a unet"):
        fuse_lora(tiny_unet(), tmp_path / FILE)
    save_lora(lora_bench(tmp_path, "consistency", teacher=tiny_model()).student(), tmp_path)
    with pytest.raises(ModelError, match="doesn't fit"):
        fuse_lora(tiny_unet(width=16), tmp_path / FILE)
    with warnings.catch_warnings(), pytest.raises(ModelError, match=r"of its \d+ tensors have a place"):
        warnings.simplefilter("ignore")
        fuse_lora(tiny_unet(mid_block_type=None), tmp_path / FILE)
    with pytest.raises(ModelError, match="LoRA files of Linear"):
        save_lora(torch.nn.Linear(2, 2), tmp_path)


def test_recipes(tmp_path):
    recipe = read_recipe(None, "consistency", ["lora={}"])
    assert (recipe.lora.rank, recipe.lora.scale, len(recipe.lora.targets)) == (64, 64.0, 14)
    with pytest.raises(SettingError, match="adapters don't mend a cut network"):
        read_recipe(None, "tsm", ["network=small", "lora.rank=4"])
    with pytest.raises(SettingError, match="Did you mean 'rank'"):
        read_recipe(None, "tsm", ["lora.ranks=4"])
    with pytest.raises(SettingError, match="has no modules of these names"):
        lora_bench(tmp_path, "tsm", {"lora": {"targets": ["query"]}}).student()


def test_without_peft_the_error_says_what_to_install(tmp_path, monkeypatch):
    b = lora_bench(tmp_path, "consistency")
    save_lora(b.student(), tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SettingError, match=r"pip install 'allaprima\[train\]'"):
        b.student()
    with pytest.raises(ModelError, match=r"pip install 'allaprima\[train\]'"):
        fuse_lora(tiny_unet(), tmp_path / FILE)
