"""Several students by one command: in turn or apart, then one card that routes."""

import pytest
from calibrated import allaprima
from PIL import Image

from allaprima.models.cards.card import load_card
from allaprima.models.multi_student.model import MultiStudent
from allaprima.pipeline import AdaptivePipeline

SMALL = [
    "loop.max_train_steps=1", "loop.train_batch_size=1", "loop.learning_rate=1e-3", "loop.warmup_steps=0",
    "loop.use_ema=0", "partition.students=2", "loop.sample_seconds=0.001", "loop.report_to=tensorboard", "loop.log_every=1",
]  # fmt: skip


@pytest.mark.slow
def test_two_students_one_card(tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (64, 64), colour).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"{colour} square, noto")
    out = tmp_path / "made"
    allaprima("distill", "tsm", f"data={folder}", *SMALL, "partition.only=1", "--out", out)
    said = " ".join(capsys.readouterr().err.split())
    assert "students [0] are still due" in said
    assert not (out / "card.yaml").exists()
    first = (out / "students" / "1" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    allaprima("distill", "tsm", f"data={folder}", *SMALL, "--out", out)
    assert (out / "students" / "1" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == first
    card = load_card(out)
    assert card.name == "emoji-tsm-2"
    pipe = AdaptivePipeline.from_card(card)
    assert isinstance(pipe.student, MultiStudent)
    prompts = ["red square, noto", "green square, noto", "blue square, noto", "white square, noto"]
    routed = pipe.student.route(pipe.student.encode(prompts))
    assert sorted(routed.tolist()) == [0, 0, 1, 1]
    assert "2 students by tsm" in (out / "README.md").read_text()
    assert (out / "samples.png").is_file()
    assert (out / "students" / "0" / "samples" / "step-000001.png").is_file(), "a grid while it was trained"
    assert list((out / "logs").rglob("events.out.tfevents.*"))
    allaprima("generate", "red square, noto", "--card", out, "--student-only", "--out", tmp_path / "run")
    assert (tmp_path / "run" / "images" / "00000.png").is_file()
