"""What compilers aren't known to run is refused before anything is fetched: the value, the rule, the next step."""

import re

import pytest
import yaml
from command_line import allaprima
from huggingface_hub import constants
from tiny_folders import card, refiner

from allaprima.core.errors import SettingError
from allaprima.models.cards.card import load_card
from allaprima.models.loading.pair import load_pair
from allaprima.models.placement.device_config import DeviceConfig
from allaprima.models.placement.placer import COMPILED, ModelPlacer

RULE = (
    r"backend='{0}' isn't known to run {1}: models of sd, sdxl, sd3, flux are\. Leave it out for torch; device and dtype can"
)


@pytest.fixture(autouse=True)
def no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def asked(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", asked)


def refused(given, backend, what):
    with pytest.raises(SettingError, match=RULE.format(backend, re.escape(what))):
        load_pair(given, ModelPlacer(DeviceConfig(backend=backend)))


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("family", ["sana", "qwen-image", "z-image"])
def test_a_family(tmp_path, family, backend):
    assert family not in COMPILED
    side = {"source": "acme/absent", "license": "mine", "guidance_scale": 1.0}
    raw = {
        "name": "far", "family": family, "description": "not here", "height": 64, "width": 64,
        "student": {**side, "steps": 2, "solver": "euler"}, "teacher": {**side, "steps": 4, "solver": "euler"},
        "oracle": {"kind": "none", "license": "none"},
    }  # fmt: skip
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(raw))
    refused(load_card(tmp_path), backend, f"the family '{family}'")


@pytest.mark.parametrize("teacher", [{"source": "refiner"}, {"refiner": "refiner"}, {"refiner": "acme/absent"}])
def test_a_refiner_alone_and_after_its_base(tmp_path, teacher):
    path = card("sdxl", tmp_path)
    refiner(tmp_path / "refiner", tmp_path / "teacher")
    raw = yaml.safe_load(path.read_text())
    raw["teacher"] |= teacher
    path.write_text(yaml.safe_dump(raw))
    refused(load_card(path), "openvino", "SDXL's refiner")


@pytest.mark.parametrize(("name", "what"), [("sana-sprint", "the family 'sana'"), ("sdxl-turbo-refiner", "SDXL's refiner")])
def test_from_the_command_line(name, what, tmp_path, capsys):
    words = ["generate", "a fox", "--card", name, "--backend", "openvino", "--threshold", "0.5", "--out", tmp_path / "out"]
    allaprima(*words, expect=2)
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(RULE.format("openvino", re.escape(what)), said)
