"""`allaprima finetune-oracle` on pairs whose labels follow the colour: the oracle learns it, the card uses it."""

import csv

import pytest
import torch
from calibrated import allaprima
from PIL import Image

from allaprima.models.cards.card import load_card
from allaprima.pipeline import AdaptivePipeline


def write(folder, rows):
    with (folder / "pairs.csv").open("w", newline="") as f:
        w = csv.DictWriter(f, ["prompt", "a", "b", "preference"])
        w.writeheader()
        w.writerows(rows)
    return folder / "pairs.csv"


@pytest.fixture
def pairs(tmp_path):
    rows = []
    for i in range(20):
        for side, colour in (("red", (150 + i * 4, 30, 20)), ("blue", (20, 30, 150 + i * 4))):
            Image.new("RGB", (70, 64), colour).save(tmp_path / f"{side}{i}.png")
        a, b = ("red", "blue") if i % 2 else ("blue", "red")
        rows.append({"prompt": f"thing {i}, noto", "a": f"{a}{i}.png", "b": f"{b}{i}.png", "preference": "ab"[i % 2]})
    return write(tmp_path, rows)


def said(capsys):
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_an_oracle_learns_what_people_prefer(pairs, tmp_path, capsys):
    """Blue is preferred, whichever side it stands on."""
    out = tmp_path / "out"
    args = ("finetune-oracle", pairs, "--steps", 60, "--batch-size", 8, "--learning-rate", 1e-3, "--out", out)
    allaprima(*args)
    words = said(capsys)
    assert "20 pairs of 20 prompts" in words
    assert "after 1.000" in words
    card = load_card(out)
    assert (card.name, card.calibration) == ("emoji-oracle", None)
    pipe, old = AdaptivePipeline.from_card(card), AdaptivePipeline.from_card("emoji")
    assert pipe.oracle.fingerprint != old.oracle.fingerprint
    colours = torch.tensor([[20.0, 30, 200], [200, 30, 20]])[..., None, None].expand(2, 3, 64, 64) / 255
    blue, red = pipe.oracle.score(colours, ["chair, noto"] * 2).tolist()
    assert blue > red, "a prompt it has never seen"
    weights = (out / "oracle" / "model.safetensors").read_bytes()
    allaprima(*args)
    assert (out / "oracle" / "model.safetensors").read_bytes() == weights, "nothing left to do"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"preference": "both"}, "row 1: preference='both'"),
        ({"preference": "1.5"}, "preferences from"),
        ({"prompt": " "}, "row 1: the prompt is empty"),
        ({"a": "nowhere.png"}, "nowhere.png cannot be read as a picture"),
    ],
)
def test_rows_that_cannot_be_used_are_named(pairs, tmp_path, capsys, change, words):
    rows = list(csv.DictReader(pairs.read_text().splitlines()))
    rows[0].update(change)
    allaprima("finetune-oracle", write(tmp_path, rows), "--out", tmp_path / "out", expect=2)
    assert words in said(capsys)
    assert not (tmp_path / "out" / "oracle").exists()


def test_refused(pairs, tmp_path, capsys):
    (tmp_path / "x.csv").write_text("prompt,a\nowl,b.png\n")
    allaprima("finetune-oracle", tmp_path / "x.csv", "--out", tmp_path / "out", expect=2)
    assert "no column 'b'" in said(capsys)
    allaprima("finetune-oracle", pairs, "--steps", 0, "--out", tmp_path / "out", expect=2)
    assert "steps=0" in said(capsys)
