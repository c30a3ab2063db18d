"""`allaprima distill` from a recipe to a card that paints, on the bundled teacher and a few small pictures."""

import json

import pytest
import torch
from calibrated import allaprima
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image

from allaprima.models.cards.card import load_card
from allaprima.pipeline import AdaptivePipeline

SMALL = ["loop.max_train_steps=2", "loop.train_batch_size=2", "loop.learning_rate=1e-4", "loop.warmup_steps=0"]


def said(capsys):
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (70, 64), colour).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"{colour} square, noto")
    return folder


@pytest.mark.slow
def test_a_student_its_card_and_its_page(tmp_path, pictures, capsys):
    out = tmp_path / "made"
    allaprima("distill", "consistency", f"data={pictures}", *SMALL, "--out", out)
    card = load_card(out)
    assert (card.name, card.student.steps) == ("emoji-consistency", 5)
    pipe = AdaptivePipeline.from_card(card)
    assert pipe.calibration is None
    teacher = AdaptivePipeline.from_card("emoji").teacher.unet
    moved = max(
        float((a - b).abs().max()) for a, b in zip(pipe.student.unet.parameters(), teacher.parameters(), strict=True)
    )
    assert 0 < moved < 1e-2
    theirs = UNet2DConditionModel.from_pretrained(out / "student" / "unet", use_safetensors=True).eval()
    x, t, embeds = torch.randn(1, 8, 16, 16), torch.tensor([500.0]), pipe.student.encode(["owl, noto"])
    with torch.no_grad():
        assert torch.allclose(theirs(x, t, embeds).sample, pipe.student.unet(x, t, embeds).sample, atol=1e-5)
    page = (out / "README.md").read_text()
    assert "4 pictures" in page
    assert "max_train_steps: 2" in page
    with Image.open(out / "samples.png") as sheet:
        assert sheet.width > 300
    weights = (out / "student" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    allaprima("distill", "consistency", f"data={pictures}", *SMALL, "--out", out)
    assert (out / "student" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == weights, "nothing left to do"
    assert json.loads((out / "provenance.json").read_text())["trained"]["step"] == 2
    allaprima("generate", "owl, noto", "--card", out, "--student-only", "--out", tmp_path / "run")
    assert (tmp_path / "run" / "images" / "00000.png").is_file()
    capsys.readouterr()
    allaprima("distill", "consistency", f"data={pictures}", *SMALL, "loop.seed=5", "--out", out, expect=2)
    assert "loop.seed was 0, now 5" in said(capsys)


def test_list_names_every_method_and_its_options(capsys):
    allaprima("distill", "--list")
    out = capsys.readouterr().out
    for word in ("consistency", "tsm", "distribution_matching  a one", "adversarial", "2312.10835"):
        assert word in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("magic",), "method='magic' is not known"),
        (("consistency", "options.grid=3"), "Did you mean 'grid_points'"),
        (("consistency", "loop.train_batch_size=0"), "loop.train_batch_size=0"),
        (("consistency", "data=nowhere"), "no folder"),
        (("consistency", "teacher=emojy"), "Did you mean 'emoji'"),
        ((), "method"),
    ],
)
def test_refused(tmp_path, capsys, args, words):
    allaprima("distill", *args, "--out", tmp_path / "out", expect=2)
    assert words in said(capsys)
    assert not (tmp_path / "out" / "student").exists()
