"""`allaprima control` as a user meets it, and the maps it computes."""

import json

import numpy as np
import pytest
import torch
from command_line import allaprima
from PIL import Image, ImageDraw
from test_edit import apple, pixels, rows  # noqa: F401 (a fixture)

from allaprima.core.errors import SettingError
from allaprima.data.control_maps import canny, colours, control_map
from allaprima.models.cards.card import load_card
from allaprima.models.loading.pair import load_pair

RUN = ["control", "--batch-size", "4", "--steps", "3", "--student-steps", "2"]


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """A ControlNet of the bundled teacher's shape whose zero convolutions are not zero."""
    from diffusers import ControlNetModel

    torch.manual_seed(0)
    made = ControlNetModel.from_unet(
        load_pair(load_card("emoji")).teacher.unet, conditioning_embedding_out_channels=(8, 16, 16)
    )
    for block in (*made.controlnet_down_blocks, made.controlnet_mid_block, made.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(block.weight, 0, 0.05)
    folder = tmp_path_factory.mktemp("net")
    made.save_pretrained(folder)
    return folder


def test_edges_of_a_disc_are_a_ring():
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    away = ((x - 32.0) ** 2 + (y - 32.0) ** 2).sqrt()
    disc = torch.where(away < 20, 0.1, 0.9)[None].repeat(3, 1, 1)
    edges = canny(disc)
    assert set(edges.unique().tolist()) == {0.0, 1.0}
    assert float(away[edges[0] == 1].sub(20).abs().max()) < 2
    assert 100 < int(edges[0].sum()) < 180, "about a circle's 2 pi 20"
    assert float(canny(torch.full((3, 64, 64), 0.5)).max()) == 0


def test_colours_are_few_and_flat():
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.1
    picture[0, :, 16:] += 0.8
    flat = colours(picture, 4)
    assert len({tuple(c) for c in flat.flatten(1).T.tolist()}) <= 4
    assert float((flat[0, :, 16:].mean() - 0.85).abs()) < 0.05
    with pytest.raises(SettingError, match="canny, colours"):
        control_map("depth", picture)


def test_a_map_leads_student_and_teacher_and_is_kept(tmp_path, apple, net, capsys):  # noqa: F811
    out = tmp_path / "run"
    args = [*RUN, apple, "red apple, noto", "owl, noto", "--net", net, "--map", "canny", "--threshold", "2", "--out", out]
    allaprima(*args, "--strategy", "refine")
    found = rows(out)
    assert [len(r["controls"]) for r in found] == [1, 1]
    kept = out / "sources" / f"{found[0]['controls'][0]['image']}.png"
    assert set(np.unique(pixels(kept))) == {0, 255}, "the map, not the picture"
    allaprima("show", out / found[0]["image"], "--repeat")
    assert "byte-identical" in capsys.readouterr().out
    off = tmp_path / "off"
    allaprima(*args[:-1], off, "--strategy", "refine", "--scale", "0")
    assert (out / found[0]["image"]).read_bytes() != (off / rows(off)[0]["image"]).read_bytes()
    allaprima(*args, "--strategy", "refine", expect=2)
    assert "--resume" in capsys.readouterr().err


def test_the_condition_counts_in_the_score(tmp_path, apple, net, capsys):  # noqa: F811
    args = [*RUN, apple, "red apple, noto", "--net", net, "--map", "colours", "--threshold", "-5"]
    allaprima(*args, "--out", tmp_path / "plain")
    allaprima(*args, "--condition-weight", "2", "--out", tmp_path / "weighed")
    plain, weighed = rows(tmp_path / "plain")[0], rows(tmp_path / "weighed")[0]
    assert plain["score"] + 0.5 < weighed["score"] <= plain["score"] + 2
    capsys.readouterr()
    allaprima("show", tmp_path / "weighed" / weighed["image"], "--repeat")
    assert "byte-identical" in capsys.readouterr().out


def test_rows_of_a_file(tmp_path, apple, net):  # noqa: F811
    listed = tmp_path / "rows.jsonl"
    listed.write_text(json.dumps({"image": "apple.png", "prompt": "owl, noto", "seed": 4}) + "\n")
    given = [*RUN, "--controls-file", listed, "--net", net, "--map", "given", "--student-only", "--out", tmp_path / "run"]
    allaprima(*given)
    (row,) = rows(tmp_path / "run")
    kept = tmp_path / "run" / "sources" / f"{row['controls'][0]['image']}.png"
    assert (pixels(kept) == pixels(apple)).all(), "the picture itself"
    assert row["seed"] == 4


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "has no ControlNet"),
        (["--net", "nowhere"], "no ControlNet 'nowhere'"),
        (["--net", "NET", "--map", "depth"], "not computed here"),
        (["--net", "NET", "--map", "canny", "--map", "canny"], "one each"),
        (["--net", "NET", "--scale", "1", "--scale", "1"], "one each"),
        (["--net", "NET", "--scale", "-1"], "0..10"),
        (["--net", "NET", "--condition-weight", "1"], "map='given' is not computed of a painting"),
        (["--net", "NET", "--map", "canny", "--condition-weight", "-1"], "weight -1.0 is out of range"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(tmp_path, apple, net, capsys, args, says):  # noqa: F811
    args = [str(net) if a == "NET" else a for a in args]
    allaprima(*RUN, apple, "owl, noto", *args, "--student-only", "--out", tmp_path / "run", expect=2)
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_picture_of_another_size(tmp_path, net, capsys):
    wide = tmp_path / "wide.png"
    image = Image.new("RGB", (100, 64), "white")
    ImageDraw.Draw(image).rectangle((20, 20, 60, 50), fill="blue")
    image.save(wide)
    args = [*RUN, wide, "owl, noto", "--net", net, "--map", "canny", "--student-only", "--out", tmp_path / "run"]
    allaprima(*args, expect=2)
    assert "--fit" in capsys.readouterr().err
    allaprima(*args, "--fit")
