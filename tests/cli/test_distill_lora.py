"""`allaprima distill consistency lora.rank=2`: a small file and a card that paints with it on the teacher."""

import pytest
import torch
from calibrated import allaprima
from PIL import Image
from safetensors.torch import load_file

from allaprima.distill.loop import TrainingProgress
from allaprima.distill.methods.common import SamplingDefaults
from allaprima.distill.publish import Publication, page, publish
from allaprima.distill.recipe import read_recipe
from allaprima.models.cards.card import load_card
from allaprima.models.components.lora import FILE, add_adapters
from allaprima.models.families.sd import load_unet
from allaprima.models.loading.pair import load_pair

SMALL = ["loop.max_train_steps=1", "loop.train_batch_size=1", "loop.learning_rate=1e-2", "loop.warmup_steps=0"]


@torch.no_grad()
def says(network):
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(1, 8, 16, 16, generator=g), torch.randn(1, 3, 384, generator=g)
    return network(x, torch.tensor([500.0]), text).sample


@pytest.mark.slow
def test_a_lora_its_card_and_its_page(tmp_path):
    pictures, out = tmp_path / "pictures", tmp_path / "made"
    pictures.mkdir()
    for i, colour in enumerate(("red", "blue")):
        Image.new("RGB", (64, 64), colour).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text(f"{colour} square, noto")
    more = ["lora={rank: 2, targets: [to_q, conv1]}", "loop.use_ema=0"]
    allaprima("distill", "consistency", f"data={pictures}", *SMALL, *more, "--out", out)
    card = load_card(out)
    assert (card.student.source, card.student.lora) == (None, f"student/{FILE}")
    assert not (out / "student" / "unet").exists()
    names = list(load_file(out / "student" / FILE))
    assert names
    assert all(n.startswith("unet.") and ".lora_" in n for n in names)
    pair = load_pair(card)
    assert pair.student.fingerprints["unet"] != pair.teacher.fingerprints["unet"]
    assert pair.student.vae is pair.teacher.vae
    assert float((says(pair.student.unet) - says(pair.teacher.unet)).abs().max()) > 1e-4
    words = (out / "README.md").read_text()
    assert f'load_lora_weights("student", weight_name="{FILE}")' in words
    assert "LoRA of rank 2" in words
    allaprima("generate", "owl, noto", "--card", out, "--student-only", "--out", tmp_path / "run")
    assert (tmp_path / "run" / "images" / "00000.png").is_file()


def test_a_lora_on_another_network_brings_that_along(tmp_path):
    emoji = load_card("emoji")
    start = emoji.path(emoji.student.source)
    recipe = read_recipe(None, "consistency", [f"start={start}", "lora={rank: 2, targets: [to_q]}"])
    made = Publication(
        recipe, emoji, TrainingProgress(1, 1, 1.0, 0.5), "words", 1, {}, SamplingDefaults(5, 4.5, "consistency"), ""
    )
    unet = load_unet(start / "unet")
    add_adapters(unet, 2, 2.0, ["to_q"])
    with torch.no_grad():
        for name, p in unet.named_parameters():
            if ".lora_B." in name:
                p.fill_(0.1)
    due = says(unet)
    card = load_card(publish(made, unet, tmp_path))
    assert (card.student.source, card.student.lora) == ("student", f"student/{FILE}")
    torch.testing.assert_close(says(load_pair(card).student.unet), due, atol=1e-5, rtol=0)
    assert "in its place and call `load_lora_weights" in page(made, "UNet2DConditionModel")
