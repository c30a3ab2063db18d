"""Pairs of every make, placed: adapters, networks alone, refiners, language models; what they share stays one."""

import json
import shutil

import pytest
import tiny_folders
import tiny_language
import torch
from tiny_placed import painted, placed_pair, says
from torch import nn

from allaprima import pipeline
from allaprima.core.errors import ModelError, SettingError
from allaprima.models.cards.card import load_card
from allaprima.models.components.loading import load_component
from allaprima.models.components.lora import add_adapters, save_lora
from allaprima.models.loading.flops import step_flops
from allaprima.models.loading.pair import load_pair
from allaprima.models.placement.device_config import DeviceConfig
from allaprima.models.placement.placer import ModelPlacer
from allaprima.oracles.load import OracleRequest
from allaprima.oracles.settings import EncoderSettings
from allaprima.pipeline import AdaptivePipeline, saving


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_folders.card("sd", tmp_path_factory.mktemp("sd"))


def lora_card(path, folder):
    net = load_component(path.parent / "teacher" / "unet")
    add_adapters(net, 2, 2.0)
    torch.manual_seed(3)
    for name, p in net.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(p, std=0.3)
    save_lora(net, folder)
    raw = {"extends": str(path), "name": "lora"}
    side = {"lora": "pytorch_lora_weights.safetensors", "steps": 2, "guidance_scale": 1.0}
    (folder / "card.yaml").write_text(json.dumps({**raw, "student": side}))
    return folder / "card.yaml"


@pytest.mark.parametrize("options", [{"lazy_teacher": True}, {"dtype": "bfloat16"}, {"compile": "default"}])
def test_a_placed_lora_student_is_beside_the_teachers_own_weights(path, tmp_path, monkeypatch, options):
    pytest.importorskip("peft", reason="pip install 'allaprima[train]'")
    monkeypatch.setattr(torch, "compile", lambda net, **how: net)
    mine = lora_card(path, tmp_path)
    usual, pair = load_pair(load_card(mine)), placed_pair(mine, **options)
    assert not torch.allclose(says(usual.student), says(usual.teacher), atol=1e-3), "or nothing is shown"
    loose = {"atol": 0.05, "rtol": 0.0} if "dtype" in options else {"atol": 0.0, "rtol": 0.0}
    for _ in range(2):
        for mine_, due in ((pair.teacher, usual.teacher), (pair.student, usual.student)):
            torch.testing.assert_close(says(mine_), says(due), **loose)
    own = {p.data_ptr() for p in pair.teacher.unet.held.parameters()}
    extra = [n for n, p in pair.student.unet.held.named_parameters() if p.data_ptr() not in own]
    assert extra
    assert all(".lora_" in n for n in extra)
    assert pair.student.fingerprints["unet"] == usual.student.fingerprints["unet"]


@pytest.mark.parametrize("options", [{"backend": "openvino"}, {"teacher_device": "cuda"}])
def test_a_lora_is_fused_where_weights_cannot_be_the_same(path, tmp_path, monkeypatch, options):
    pytest.importorskip("peft", reason="pip install 'allaprima[train]'")
    card = load_card(lora_card(path, tmp_path))
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(torch.cuda, "is_available", lambda: True)
        placer = ModelPlacer(DeviceConfig.of(**options))
    assert ModelPlacer(DeviceConfig(lazy_teacher=True)).shares
    assert not placer.shares
    monkeypatch.setattr(ModelPlacer, "pair", lambda self, *both: both)
    pair, due = load_pair(card, placer), load_pair(card)
    network = pair.student.unet.read()
    assert not any(".lora_" in n for n, _ in network.named_parameters())
    model = pair.student.with_network(network, pair.student.fingerprints)
    torch.testing.assert_close(says(model), says(due.student), atol=1e-5, rtol=1e-4)
    assert pair.student.fingerprints["unet"] == due.student.fingerprints["unet"]


def test_networks_of_a_students_own_and_adapters_on_them_are_placed(path, tmp_path):
    pytest.importorskip("peft", reason="pip install 'allaprima[train]'")
    lora_card(path, tmp_path)
    unet = path.parent / "teacher" / "unet"
    shutil.copy(unet / "diffusion_pytorch_model.safetensors", tmp_path / "own.safetensors")
    for side in ({"network": str(unet)}, {"network": "own.safetensors", "lora": "pytorch_lora_weights.safetensors"}):
        raw = {"extends": str(path), "name": "own", "student": {**side, "steps": 2, "guidance_scale": 1.0}}
        raw["student"] |= {"prediction": "sample", "lora_scale": 0.5}
        (tmp_path / "card.yaml").write_text(json.dumps(raw))
        usual, lazy = load_pair(load_card(tmp_path)), placed_pair(tmp_path, lazy_teacher=True)
        assert lazy.student.fingerprints == usual.student.fingerprints
        assert torch.equal(says(lazy.student), says(usual.student))
        assert lazy.student.prediction == "sample"
        assert not lazy.teacher.unet.loaded
    (tmp_path / "own.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \.safetensors file"):
        placed_pair(tmp_path, lazy_teacher=True)


def test_a_refiner_is_placed_with_its_base_and_read_when_needed(tmp_path):
    path = tiny_folders.card("sdxl", tmp_path)
    tiny_folders.refiner(tmp_path / "refiner", tmp_path / "teacher")
    raw = {"extends": str(path), "name": "both", "teacher": {"refiner": "refiner", "refiner_from": 0.5}}
    (tmp_path / "both.yaml").write_text(json.dumps(raw))
    mine = tmp_path / "both.yaml"
    usual, lazy = load_pair(load_card(mine)), placed_pair(mine, lazy_teacher=True)
    assert lazy.teacher.fingerprint == usual.teacher.fingerprint
    assert lazy.student.fingerprint == usual.student.fingerprint
    assert not lazy.teacher.base.unet.loaded
    assert not lazy.teacher.refiner.unet.loaded
    told = {"mode": "refine-all", "teacher_steps": 4}
    due, found = (painted(p, mine, **told) for p in (usual, lazy))
    assert all(torch.equal(a.image, b.image) for a, b in zip(due, found, strict=True))
    assert lazy.teacher.refiner.unet.loaded
    with pytest.raises(SettingError, match="isn't known to run SDXL's refiner"):
        placed_pair(mine, backend="openvino")
    low = placed_pair(mine, dtype="bfloat16")
    assert low.student.also is low.teacher.refiner, "one model, one text encoder"
    pictures = [torch.stack([r.image for r in painted(p, mine, **told)]) for p in (low, usual)]
    torch.testing.assert_close(*pictures, atol=0.1, rtol=0)


@pytest.mark.parametrize("family", ["sana", "qwen-image", "z-image"])
def test_language_models_are_placed_too(tmp_path, family):
    make = {"sana": tiny_language.sana, "qwen-image": tiny_language.qwen_image, "z-image": tiny_language.z_image}[family]
    make(tmp_path / "model")
    path = tiny_language.card(tmp_path, family, {"source": "model"}, {"source": "model"})
    usual, low = load_pair(load_card(path)), placed_pair(path, dtype="bfloat16")
    due, found = (p.student.condition(["red", "a red"]).tensors for p in (usual, low))
    assert due.keys() == found.keys()
    for k, v in due.items():
        torch.testing.assert_close(found[k].float(), v.float(), atol=0.1 * float(v.float().abs().max()), rtol=0)
    images = [p.student.decode(p.student.encode_images(torch.full((1, 3, 32, 32), 0.5))) for p in (usual, low)]
    torch.testing.assert_close(*images, atol=0.1, rtol=0)
    pictures = [torch.stack([r.image for r in painted(p, path, mode="refine-all")]) for p in (usual, low)]
    torch.testing.assert_close(*pictures, atol=0.2, rtol=0)
    with pytest.raises(SettingError, match=f"isn't known to run the family '{family}'"):
        placed_pair(path, backend="openvino")


def test_published_oracles_are_where_the_placement_is_unless_they_say(path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(saving, "load_pair", lambda card, placer: load_pair(card))
    monkeypatch.setattr(pipeline, "load_oracle", lambda *a: asked.append(a))
    AdaptivePipeline.from_card(path, device="cuda:1")
    (kind, folder, encode, settings, step, device) = asked[0]
    assert (kind, device) == ("dual_encoder", "cuda:1")
    for own, due in ((settings, "cuda:1"), ({"device": "cpu", "dtype": "bfloat16"}, "cpu")):
        assert OracleRequest("clip", folder, own, encode, step, device).encoder_settings(EncoderSettings).device == due


def test_a_stand_in_says_what_a_step_takes(path):
    usual, on_device = load_pair(load_card(path)), placed_pair(path, lazy_teacher=True)
    assert step_flops(on_device.teacher, 16, 16, 3.0) == step_flops(usual.teacher, 16, 16, 3.0) > 0
    assert not on_device.teacher.unet.loaded
