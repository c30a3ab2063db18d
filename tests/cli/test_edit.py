"""`allaprima edit` as a user meets it."""

import json

import numpy as np
import pytest
from command_line import allaprima
from PIL import Image, ImageDraw

RUN = ["edit", "--batch-size", "4", "--steps", "4", "--student-steps", "2"]


@pytest.fixture
def apple(tmp_path):
    """A red disc on white."""
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((12, 12, 52, 52), fill=(200, 30, 30))
    image.save(tmp_path / "apple.png")
    return tmp_path / "apple.png"


def rows(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_a_picture_at_several_strengths(tmp_path, apple):
    out = tmp_path / "run"
    allaprima(*RUN, apple, "red apple, noto", "--strengths", "0.25,0.5,1e-9", "--threshold", 2, "--out", out, "--seed", 5)
    found = rows(out)
    assert [r["edit"]["strength"] for r in found] == [0.25, 0.5, 1e-9]
    assert [r["seed"] for r in found] == [5, 5, 5], "what differs is the strength"
    assert [r["steps"] for r in found] == [2 + 1, 2 + 2, 2 + 1]
    assert {r["decision"] for r in found} == {"regenerate"}
    before = pixels(apple)
    away = [abs(pixels(out / r["image"]) - before).mean() for r in found]
    assert away[0] < away[1]
    assert (out / "sheet.png").exists()
    assert (out / "sources" / f"{found[0]['edit']['image']}.png").exists()


def test_it_is_painted_again_from_its_own_record(tmp_path, apple, capsys):
    out, mask = tmp_path / "run", tmp_path / "mask.png"
    Image.new("L", (64, 64), 0).save(mask)
    with Image.open(mask) as image:
        ImageDraw.Draw(image).rectangle((0, 0, 63, 30), fill=255)
        image.save(mask)
    allaprima(*RUN, apple, "red apple, noto", "--mask", mask, "--student-only", "--out", out)
    (row,) = rows(out)
    assert row["edit"]["strength"] == 1
    assert (pixels(out / row["image"])[31:] == pixels(apple)[31:]).all(), "kept to the pixel"
    assert (pixels(out / row["image"])[:31] != pixels(apple)[:31]).any()
    allaprima("show", out / row["image"], "--repeat")
    assert "byte-identical" in capsys.readouterr().out
    kept = out / "sources" / f"{row['edit']['image']}.png"
    Image.new("RGB", (64, 64), "blue").save(kept)
    allaprima("show", out / row["image"], "--repeat", expect=2)
    assert "was changed" in capsys.readouterr().err
    kept.unlink()
    allaprima("show", out / row["image"], "--repeat", expect=2)
    assert kept.name in capsys.readouterr().err.replace("\n", "")


def test_rows_of_a_file_and_resume(tmp_path, apple, capsys):
    edits = tmp_path / "edits.jsonl"
    edits.write_text(
        json.dumps({"image": "apple.png", "prompt": "red apple, noto", "strength": 0.5, "seed": 9})
        + "\n\n"
        + json.dumps({"image": "apple.png", "prompt": "tomato, twemoji"})
        + "\n"
    )
    args = [*RUN, "--edits-file", edits, "--student-only", "--out"]
    allaprima(*args, tmp_path / "a")
    found = rows(tmp_path / "a")
    assert [(r["seed"], r["edit"]["strength"]) for r in found] == [(9, 0.5), (1, 0.8)]
    (tmp_path / "a" / "images" / "00001.png").unlink()
    allaprima(*args, tmp_path / "a", "--resume")
    allaprima(*args, tmp_path / "b")
    for name in ("images/00001.png", "results.jsonl", "sheet.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    Image.new("RGB", (64, 64), "green").save(apple)
    allaprima(*args, tmp_path / "a", "--resume", expect=2)
    assert "belongs to another run" in capsys.readouterr().err


def test_without_a_threshold_the_cards_own_holds_and_that_is_said(tmp_path, apple, capsys):
    allaprima(*RUN, apple, "red apple, noto", "--student-steps", 3, "--strengths", "0.5", "--out", tmp_path / "run")
    assert "from a prompt alone" in " ".join(capsys.readouterr().err.split())
    (row,) = rows(tmp_path / "run")
    assert (row["decision"] == "accept") == (row["score"] >= row["threshold"])


def test_scores_of_edits_are_not_taken_for_drift(tmp_path, apple, monkeypatch):
    monkeypatch.setattr("allaprima.experiments.runner.DriftWatch", lambda *_: pytest.fail("watched"))
    allaprima(*RUN, apple, "red apple, noto", "--student-steps", 3, "--strengths", "0.5", "--out", tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"args": ["--strengths", "0"]}, "above 0"),
        ({"args": ["--strengths", "1"]}, "forgets the picture"),
        ({"args": ["--strengths", "much"]}, "not numbers"),
        ({"args": ["--mask", "nowhere.png"]}, "nowhere.png is not there"),
        ({"size": (80, 64)}, "--fit"),
        ({"mode": "RGBA"}, "transparent"),
        ({"mode": "I;16"}, "8 bits"),
        ({"bytes": b"no picture"}, "cannot be read as a picture"),
        ({"prompts": []}, "no prompt for"),
        ({"args": ["--edits-file", "edits.txt"]}, "give one of the two"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(tmp_path, apple, capsys, change, says):
    if "size" in change:
        Image.new("RGB", change["size"]).save(apple)
    if "mode" in change:
        Image.new(change["mode"], (64, 64)).save(apple)
    if "bytes" in change:
        apple.write_bytes(change["bytes"])
    prompts = change.get("prompts", ["red apple, noto"])
    allaprima(*RUN, apple, *prompts, *change.get("args", []), "--student-only", "--out", tmp_path / "run", expect=2)
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"image": "apple.png"}', "line 1: no prompt"),
        ('{"prompt": "owl, noto"}', "line 1: no image"),
        ("nothing", "is not JSON"),
        ('{"image": "apple.png", "prompt": "owl, noto", "strength": "some"}', "line 1"),
        ("", "has no rows"),
    ],
)
def test_bad_rows_are_named(tmp_path, apple, capsys, text, says):
    edits = tmp_path / "edits.jsonl"
    edits.write_text(text)
    allaprima(*RUN, "--edits-file", edits, "--student-only", "--out", tmp_path / "run", expect=2)
    assert says in " ".join(capsys.readouterr().err.split())


def test_fit_resizes_and_cuts(tmp_path, apple):
    Image.new("RGB", (130, 90), "red").save(apple)
    allaprima(*RUN, apple, "red apple, noto", "--fit", "--student-only", "--out", tmp_path / "run")
    (row,) = rows(tmp_path / "run")
    assert pixels(tmp_path / "run" / "sources" / f"{row['edit']['image']}.png").shape == (64, 64, 3)
