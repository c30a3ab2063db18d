"""`allaprima cards`, `card show`, `card new`."""

import json
import shutil

import pytest
import torch
import yaml
from command_line import allaprima
from huggingface_hub import constants
from safetensors.torch import save_file
from tiny_folders import card, model, unet

from allaprima.core.errors import ModelError, UnsafeWeightsError
from allaprima.models.cards.card import bundled_cards, load_card
from allaprima.models.loading.infer_card import alike, infer_card
from allaprima.models.loading.pair import load_pair


@pytest.fixture(autouse=True)
def no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_the_table_has_every_card_and_says_what_is_here(capsys):
    allaprima("cards")
    lines = capsys.readouterr().out.splitlines()
    for name in bundled_cards():
        (row,) = [x for x in lines if x.startswith(f"│ {name} ")]
        cells = [c.strip() for c in row.split("│")]
        assert cells[6] == ("yes" if name in ("emoji", "scenes") else "no")
    flux = next(x for x in lines if x.startswith("│ flux-schnell-dev "))
    assert "107.6 GiB" in flux
    assert any("stabilityai-ai-community*" in x for x in lines), "a gated licence is marked"


def test_show_explains_parts_licences_commands_and_memory(capsys):
    allaprima("card", "show", "sd15-lcm", "--no-activations")
    out = capsys.readouterr().out
    assert "hf download Lykon/dreamshaper-7 --include model_index.json --include 'unet/*' --include 'scheduler/*'" in out
    assert (
        "hf download SimianLuo/LCM_Dreamshaper_v7 --include model_index.json --include 'unet/*' --include 'scheduler/*'"
        in out
    )
    assert "859,602,884" in out
    (command,) = [line for line in out.splitlines() if "hf download Lykon" in line]
    assert command.endswith("'*.pkl'"), "a command is one line, to be copied"
    assert "CreativeML Open RAIL-M" in out
    assert "no threshold comes with it" in " ".join(out.split())


def test_show_of_what_is_here_has_nothing_to_fetch(capsys):
    allaprima("card", "show", "emoji")
    out = capsys.readouterr().out
    assert "hf download" not in out
    assert "together" in out
    assert "11,455,112" in out


def test_a_written_card_paints_as_the_models_are(tmp_path, capsys):
    """Time-conditioned UNet: LCM; what is equal is shared; licences from the pages; and the pair loads."""
    model("sdxl", tmp_path / "teacher")
    shutil.copytree(tmp_path / "teacher", tmp_path / "student")
    shutil.rmtree(tmp_path / "student" / "unet")
    more = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 32}
    unet(tmp_path / "student" / "unet", cross_attention_dim=16, time_cond_proj_dim=4, **more)
    (tmp_path / "student" / "README.md").write_text("---\nlicense: openrail++\ntags: []\n---\nA page.\n")
    config = tmp_path / "student" / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_name_or_path": "elsewhere"}))
    weights = tmp_path / "student" / "text_encoder_2" / "model.safetensors"
    from safetensors.torch import load_file

    save_file({k: v + 1 for k, v in load_file(weights).items()}, weights, metadata={"format": "pt"})
    allaprima(
        "card", "new", "--student", tmp_path / "student", "--teacher", tmp_path / "teacher", "--out", tmp_path / "mine"
    )
    out = " ".join(capsys.readouterr().out.split())
    c = load_card(tmp_path / "mine")
    assert (c.name, c.family, c.height) == ("mine", "sdxl", 16)
    assert (c.student.solver, c.student.guidance_scale, c.student.license) == ("lcm", 8.0, "openrail++")
    assert set(c.student.share) == {"text_encoder", "tokenizer", "tokenizer_2", "vae"}
    assert c.teacher.license == "unstated"
    assert "time_cond_proj_dim" in out
    assert "they differ" in out
    pair = load_pair(c)
    assert pair.student.vae is pair.teacher.vae
    assert pair.student.text_encoder_2 is not pair.teacher.text_encoder_2
    allaprima("card", "new", "--student", "x", "--teacher", "y", "--out", tmp_path / "mine", expect=2)
    assert "exists" in capsys.readouterr().err


def test_a_lora_and_a_network_alone(tmp_path):
    model("sd", tmp_path / "teacher")
    save_file({"unet.x.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "some.safetensors")
    raw, said = infer_card("some.safetensors", "teacher", None, "mine", tmp_path)
    assert raw["student"]["lora"] == str(tmp_path / "some.safetensors")
    assert raw["student"]["share"] == ["text_encoder", "tokenizer", "vae"]
    assert any("doesn't say how it is sampled" in why for _, _, why in said.rows)
    unet(tmp_path / "net", cross_attention_dim=8)
    raw, _ = infer_card("net", "teacher", "dual_encoder=oracle", "mine", tmp_path)
    assert (raw["student"]["network"], raw["oracle"]["source"]) == (str(tmp_path / "net"), "oracle")
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(raw))
    load_pair(load_card(tmp_path))


def test_trailing_times_are_seen(tmp_path):
    model("sd", tmp_path / "teacher")
    shutil.copytree(tmp_path / "teacher", tmp_path / "turbo")
    config = tmp_path / "turbo" / "scheduler" / "scheduler_config.json"
    said = {**json.loads(config.read_text()), "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}
    config.write_text(json.dumps(said))
    raw, _ = infer_card("turbo", "teacher", None, "mine", tmp_path)
    assert raw["student"]["solver"].startswith("euler")
    assert raw["student"]["guidance_scale"] == 1.0


def test_what_can_be_no_pair_is_named(tmp_path):
    model("sd", tmp_path / "sd")
    model("flux", tmp_path / "flux")
    with pytest.raises(ModelError, match=r"sd is of the family sd \(.*\), flux of flux"):
        infer_card("sd", "flux", None, "x", tmp_path)
    with pytest.raises(ModelError, match="nowhere is no folder here and no hub id"):
        infer_card("nowhere", "sd", None, "x", tmp_path)
    with pytest.raises(UnsafeWeightsError):
        infer_card("lora.pt", "sd", None, "x", tmp_path)
    index = tmp_path / "sd" / "model_index.json"
    index.write_text(json.dumps({"_class_name": "PixArtAlphaPipeline"}))
    config = tmp_path / "sd" / "unet" / "config.json"
    config.write_text(json.dumps({"_class_name": "PixArtTransformer2DModel"}))
    with pytest.raises(ModelError, match=r"no known family .*sd, sdxl, sd3, .*family: any"):
        infer_card("sd", "sd", None, "x", tmp_path)
    with pytest.raises(ModelError, match="acme/thing is not on this machine"):
        infer_card("acme/thing", "flux", None, "x", tmp_path)


def test_alike_is_about_weights_and_configs(tmp_path):
    card("sd", tmp_path)
    a, b = tmp_path / "teacher" / "vae", tmp_path / "copy"
    shutil.copytree(a, b)
    assert alike(a, b)
    (b / "diffusion_pytorch_model.safetensors").unlink()
    assert alike(a, b) is None
    shutil.copy(a / "diffusion_pytorch_model.safetensors", b)
    config = json.loads((b / "config.json").read_text())
    (b / "config.json").write_text(json.dumps({**config, "scaling_factor": 1.0}))
    assert not alike(a, b)


def test_a_card_of_servers_is_shown_without_an_estimate(tmp_path, capsys):
    far = {"remote": {"url": "http://127.0.0.1:9/v1", "model": "big"}, "guidance_scale": 1.0, "license": "theirs"}
    raw = {
        "name": "far", "family": "any", "description": "far", "height": 16, "width": 16, "student": {**far, "steps": 2},
        "teacher": {**far, "steps": 5}, "oracle": {"kind": "none", "license": "none"},
    }  # fmt: skip
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(raw))
    allaprima("card", "show", tmp_path)
    out = " ".join(capsys.readouterr().out.split())
    assert "student's server" in out
    assert "big at http://127.0.0.1:9/v1" in out
    assert "is not there" not in out
    assert "Memory isn't estimated" in out
