"""What a card may say of its models and its oracle, saved and read again: refiner, adapters, networks alone, settings."""

import pytest
import torch
import yaml
from tiny_folders import SIZE, card, refiner
from tiny_lora import lora_file
from tiny_published import TINY_CLIP, clip_shapes, clip_tokenizer, random_weights

from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import ModelError, SettingError
from allaprima.diffusion.noising import Strength
from allaprima.models.cards.card import load_card
from allaprima.models.loading.pair import load_pair
from allaprima.oracles.convert import convert_open_clip
from allaprima.oracles.load import load_oracle
from allaprima.pipeline import AdaptivePipeline
from allaprima.pipeline.saving import save

SIDE = {"steps": 2, "guidance_scale": 1.0, "solver": "euler@trailing", "license": "Apache-2.0"}
RUN = {"seed": [11, 12], "mode": "refine-all", "output_type": "pt", "batch_size": 2}
PROMPTS = ["red fox", "a blue owl"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdxl")
    made = card("sdxl", folder)
    refiner(folder / "refiner", folder / "teacher")
    raw = yaml.safe_load(made.read_text())
    network = load_pair(load_card(made)).teacher.network
    lora_file(folder / "few.safetensors", network, "peft")
    network.save_pretrained(folder / "unet")
    (folder / "weights.safetensors").write_bytes((folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes())
    (folder / "base.yaml").write_text(yaml.safe_dump({**raw, "oracle": {"kind": "none", "license": "none"}}))
    return folder


def written(folder, student, teacher=None, **more):
    raw = yaml.safe_load((folder / "base.yaml").read_text())
    made = {**raw, **more, "student": {**SIDE, **student}, "teacher": {**raw["teacher"], **(teacher or {})}}
    (folder / "card.yaml").write_text(yaml.safe_dump(made))
    return AdaptivePipeline.from_card(folder)


FIELDS = {
    "a refiner, and adapters at a scale": (
        {"lora": "few.safetensors", "lora_scale": 0.4}, {"refiner": "refiner", "refiner_from": 0.6},
    ),
    "adapters on a network alone": ({"lora": "few.safetensors", "network": "unet"}, {}),
    "weights in one file": ({"network": "weights.safetensors", "prediction": "v_prediction"}, {"prediction": "sample"}),
}  # fmt: skip


@pytest.mark.parametrize("prints", ["files", "content"])
@pytest.mark.parametrize("what", FIELDS)
def test_a_cards_fields_are_saved(folder, tmp_path, what, prints):
    student, teacher = FIELDS[what]
    first = written(folder, student, teacher, fingerprints=prints)
    first.save_pretrained(tmp_path / "mine")
    again = AdaptivePipeline.from_pretrained(tmp_path / "mine")
    assert again.fingerprints() == first.fingerprints()
    for part, said in {"student": student, "teacher": teacher}.items():
        kept = getattr(again.card, part)
        assert {k: getattr(kept, k) for k in said if k not in ("lora", "network", "refiner")} == {
            k: v for k, v in said.items() if k not in ("lora", "network", "refiner")
        }
    assert again.card.student.source is None, "it still sits on the teacher's"
    assert again.settings.student_solver == "euler@trailing"
    assert not (tmp_path / "mine" / "refiner" / "vae").exists(), "what a refiner shares is there once"
    assert torch.equal(again(PROMPTS, **RUN).images, first(PROMPTS, **RUN).images)


def test_content_says_which_scale_adapters_have(folder):
    def of(**student):
        return written(folder, {"lora": "few.safetensors", **student}, fingerprints="content").student.fingerprints["unet"]

    beside, fused = of(lora_scale=0.5), of(network="unet", lora_scale=0.5)
    assert beside == fused, "the same tensors beside or multiplied in"
    assert len({beside, of(), of(network="unet", lora_scale=0.25)}) == 3


def test_an_oracles_members_and_settings_are_saved(folder, tmp_path):
    clip_tokenizer(tmp_path / "words")
    for i, name in enumerate(("first", "second")):
        torch.save(random_weights(clip_shapes(TINY_CLIP), seed=i), tmp_path / f"{name}.pt")
        convert_open_clip(tmp_path / f"{name}.pt", tmp_path / "words", tmp_path / "oracles" / name)
    members = [
        {"kind": "clip", "source": "first", "weight": 3, "scale": {"mean": 1.5, "deviation": 4.0}},
        {"kind": "hpsv2", "source": "second", "settings": {"batch_size": 2}},
    ]
    said = {"members": members, "name": "two"}
    where = {"kind": "ensemble", "source": str(tmp_path / "oracles"), "license": "MIT", "settings": said}
    first = written(folder, {"source": "teacher"}, oracle=where)
    first.save_pretrained(tmp_path / "mine")
    again = AdaptivePipeline.from_pretrained(tmp_path / "mine")
    assert again.fingerprints() == first.fingerprints()
    assert again.card.oracle.license == "MIT"
    assert str(tmp_path / "oracles") not in (tmp_path / "mine" / "card.yaml").read_text()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.oracle.score(images, ["owl", "red"]), first.oracle.score(images, ["owl", "red"]))
    first.oracle = load_oracle("vqa", ".", settings={"url": "http://127.0.0.1:9/v1", "model": "m"})
    first.save_pretrained(tmp_path / "asked")
    assert not (tmp_path / "asked" / "oracle").exists(), "nothing but settings"
    kept = load_card(tmp_path / "asked").oracle
    assert (kept.kind, kept.settings["model"], kept.license) == ("vqa", "m", "unknown")


def test_what_is_called_whole_is_not_saved(tmp_path):
    class Whole:
        fingerprint, paints_over = "whole", True

        def check(self, request):
            pass

        def paint(self, requests, batch):
            return []

        def encode(self, prompts):
            raise NotImplementedError

    settings = CascadeSettings(student_solver="own", teacher_solver="own", sigma=Strength(0.5), height=SIZE, width=SIZE)
    with pytest.raises(SettingError, match="called whole aren't saved"):
        save(AdaptivePipeline(Whole(), Whole(), None, settings), tmp_path / "mine")


def test_a_local_student_takes_the_place_of_a_remote_one(tmp_path):
    side = {"steps": 2, "guidance_scale": 1.0, "license": "theirs"}
    far = {"remote": {"url": "http://127.0.0.1:9/v1", "model": "m"}, **side}
    raw = {"extends": "emoji", "name": "far", "student": far, "teacher": far}
    (tmp_path / "far.yaml").write_text(yaml.safe_dump(raw))
    assert load_card(tmp_path / "far.yaml").student.source is None
    near = {"extends": "far.yaml", "name": "near", "student": {"source": "mine", "solver": "ddim"}}
    (tmp_path / "near.yaml").write_text(yaml.safe_dump(near))
    made = load_card(tmp_path / "near.yaml")
    assert (made.student.remote, made.student.source) == (None, "mine")
    assert made.teacher.remote is not None
    assert made.teacher.source is not None, "where shared parts are"
    odd = {**raw, "family": "any", "student": {**far, "remote": None, "source": "a", "lora": "b.safetensors"}}
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump(odd))
    with pytest.raises(ModelError, match=r"one folder, its source; this one has a lora"):
        AdaptivePipeline.from_card(tmp_path / "odd.yaml")
