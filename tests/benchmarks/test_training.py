"""The training benchmark compares like with like: loss, gradient and a whole step of both sides are the same."""

import json

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from allaprima.core.errors import SettingError
from allaprima.core.types import Condition
from allaprima.diffusion.schedules import DiscreteVP
from allaprima.models.cards.card import TextSettings
from allaprima.models.families.sd import SDModel
from benchmarks import training

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def tiny(kind="epsilon"):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(8, 16), cross_attention_dim=6, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4,
    ).eval().requires_grad_(False)  # fmt: skip
    scheduler = {**BETAS, "prediction_type": kind}
    teacher = SDModel(
        unet=unet, vae=None, text_encoder=None, tokenizer=None, schedule=DiscreteVP.from_config(scheduler), prediction=kind,
        text=TextSettings(), fingerprints={"unet": "tiny"},
    )  # fmt: skip
    embeds = torch.randn(20, 3, 6)
    return training.case_of(
        teacher, scheduler, Condition({"prompt_embeds": embeds}), Condition({"prompt_embeds": 0 * embeds[:1]})
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_both_sides_do_the_same_work(kind):
    case = tiny(kind)
    # 64 draws of 50 times: the last link of the grid, whose end is time 0, is among them.
    ours, script = training.Ours(case, 64, 1e-4), training.Script(case, 64, 1e-4)
    assert int(ours.draw(0).index.max()) == training.GRID - 1
    found = training.agreement(ours, script)
    assert found["loss_apart"] < 1e-4
    assert found["gradient_apart"] < 1e-3
    before = torch.cat([p.flatten() for p in case.start.parameters()])
    for step in range(2):
        script.descend(script.loss_of(ours.draw(step)))
        ours.step(step)
    for mine, theirs in ((ours.model, script.unet), (ours.emas["target"], script.target)):
        a, b = (torch.cat([p.detach().flatten() for p in net.parameters()]) for net in (mine, theirs))
        assert float((b - before).abs().mean()) > 1e-6
        # Adam divides by the gradient's size: where that is rounding, steps may differ.
        assert float((a - b).abs().mean()) < 0.01 * float((b - before).abs().mean())


def test_another_scale_is_another_loss():
    case = tiny()
    ours, script = training.Ours(case, 4, 1e-4), training.Script(case, 4, 1e-4)
    d = ours.draw(0)
    right = float(ours.loss(0).detach())
    wrong = script.loss(d.x0, d.cond.tensors["prompt_embeds"], training.GRID - 1 - d.index, d.eps, d.w)
    assert abs(float(wrong.detach()) - right) > 1e-3 * right


def test_it_prints_what_it_measured(monkeypatch, capsys):
    monkeypatch.setattr(training, "CASES", {"tiny": tiny})
    arguments = ["--models", "tiny", "--batch", "2", "--blocks", "2", "--steps", "1"]
    training.main([*arguments, "--json"])
    found = json.loads(capsys.readouterr().out)["models"]["tiny"]
    assert found["same_draw"]["loss_apart"] < 1e-4
    assert all(v["min"] > 0 for v in found["samples_a_second"].values())
    training.main(arguments)
    assert "ratio_of_cpu_seconds" in capsys.readouterr().out
    with pytest.raises(SettingError, match="models='huge'"):
        training.main(["--models", "huge"])
