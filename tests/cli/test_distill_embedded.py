"""A student with guidance embedded, from `allaprima distill` to a picture that cost one evaluation a step."""

import pytest
from calibrated import allaprima
from PIL import Image

from allaprima.models.cards.card import load_card
from allaprima.models.families.sd import guidance_dim
from allaprima.pipeline import AdaptivePipeline

SMALL = ["loop.max_train_steps=1", "loop.train_batch_size=1", "loop.warmup_steps=0"]


@pytest.mark.slow
def test_a_student_with_guidance_embedded_paints_from_its_card(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "0.png")
    (folder / "0.txt").write_text("red square, noto")
    out = tmp_path / "made"
    options = ["options.embedded_guidance=true", "options.boundary=lcm", "options.w=[1, 8]"]
    allaprima("distill", "consistency", f"data={folder}", *options, *SMALL, "--out", out)
    card = load_card(out)
    assert (card.student.solver, card.student.steps) == ("lcm", 5)
    assert "one network evaluation" in (out / "README.md").read_text()
    allaprima("generate", "owl, noto", "--card", out, "--student-only", "--out", tmp_path / "run")
    assert (tmp_path / "run" / "images" / "00000.png").is_file()
    pipe = AdaptivePipeline.from_card(card)
    assert guidance_dim(pipe.student.unet) == 256
    assert guidance_dim(pipe.teacher.unet) is None
    made = pipe("owl, noto", seed=0, mode="refine-all", batch_size=1, student_steps=2, teacher_steps=2)
    # The card's teacher is guided at every time but its last ones; at scale 1 it would cost one.
    assert made.costs[0].evaluations == {"student": 2, "teacher": 4, "oracle": 1}
