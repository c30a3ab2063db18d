import shutil
from importlib import resources
from pathlib import Path

import pytest
import torch
import yaml

from allaprima.core.errors import ModelError, UnsafeWeightsError
from allaprima.models.cards.card import load_card
from allaprima.models.components.loading import load_component

WEIGHTS = Path(str(resources.files("allaprima"))) / "bundled" / "emoji" / "weights"


def test_a_truncated_file_is_named(tmp_path):
    shutil.copytree(WEIGHTS / "teacher" / "vae", tmp_path / "vae")
    f = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    f.write_bytes(f.read_bytes()[: f.stat().st_size // 2])
    with pytest.raises(ModelError, match=r"diffusion_pytorch_model\.safetensors .* truncated"):
        load_component(tmp_path / "vae")


def test_a_pickle_is_refused(tmp_path):
    shutil.copytree(WEIGHTS / "teacher" / "vae", tmp_path / "vae")
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, tmp_path / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(UnsafeWeightsError, match="pickle"):
        load_component(tmp_path / "vae")


def test_what_can_be_shared_is_loaded_once(pipe):
    for part in ("vae", "text_encoder", "tokenizer"):
        assert getattr(pipe.student, part) is getattr(pipe.teacher, part)
    assert pipe.student.unet is not pipe.teacher.unet


@pytest.mark.parametrize(
    ("change", "says"),
    [({"height": 4}, "height"), ({"colour": "red"}, "colour"), ({"family": "gan"}, "'gan'"), ({"name": None}, "name")],
)
def test_a_bad_card_names_the_field(tmp_path, change, says):
    from allaprima.models.loading.pair import load_pair

    raw = yaml.safe_load((WEIGHTS.parent / "card.yaml").read_text())
    (tmp_path / "card.yaml").write_text(yaml.safe_dump({**raw, **change}))
    with pytest.raises(ModelError, match=says):
        load_pair(load_card(tmp_path))


def test_diffusers_loads_the_unets():
    from diffusers import DDIMScheduler, UNet2DConditionModel

    for name in ("teacher", "student"):
        net = UNet2DConditionModel.from_pretrained(WEIGHTS / name / "unet", use_safetensors=True)
        assert net.config.in_channels == 8
        assert DDIMScheduler.from_pretrained(WEIGHTS / name / "scheduler").config.prediction_type == "v_prediction"


def test_all_weights_fit_in_96_mebibytes_and_have_provenance():
    total = sum(p.stat().st_size for p in WEIGHTS.rglob("*.safetensors"))
    assert total <= 96 * 2**20
    for name in ("teacher", "teacher/vae", "teacher/text_encoder", "student", "oracle"):
        assert (WEIGHTS / name / "provenance.json").exists()
