"""Captioned pictures from folders, tars and data sets: the same pictures whichever way they are kept."""

import io
import json
import tarfile

import pytest
from PIL import Image

from allaprima.core.errors import SettingError
from allaprima.data.captioned import read_captioned
from allaprima.data.images import covering

COLOURS = {"a": (255, 0, 0), "b": (0, 255, 0), "c": (0, 0, 255)}


def png(colour, size=(6, 4)):
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "png")
    return out.getvalue()


def folder(tmp_path, how):
    for name, colour in COLOURS.items():
        (tmp_path / f"{name}.png").write_bytes(png(colour))
    rows = [{"file_name": f"{n}.png", "text": f"colour {n}"} for n in COLOURS]
    if how == "jsonl":
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    elif how == "csv":
        (tmp_path / "metadata.csv").write_text("file_name,text\n" + "".join(f"{n}.png,colour {n}\n" for n in COLOURS))
    else:
        for n in COLOURS:
            (tmp_path / f"{n}.txt").write_text(f"colour {n}\n")
    return str(tmp_path)


def tars(tmp_path, how, split=2):
    for k, names in enumerate((list(COLOURS)[:split], list(COLOURS)[split:])):
        with tarfile.open(tmp_path / f"{k}.tar", "w") as tar:
            for n in names:
                text = f"colour {n}".encode() if how == "txt" else json.dumps({"caption": f"colour {n}"}).encode()
                for kind, data in (("png", png(COLOURS[n])), (how, text)):
                    info = tarfile.TarInfo(f"x/{n}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return str(tmp_path / "*.tar")


def seen(rows):
    return [(r.caption, r.image.getpixel((0, 0))) for r in rows]


SOURCES = [(folder, "jsonl"), (folder, "csv"), (folder, "txt"), (tars, "txt"), (tars, "json")]


@pytest.mark.parametrize(("make", "how"), SOURCES)
def test_every_source_gives_the_same(tmp_path, make, how):
    due = [(f"colour {n}", c) for n, c in COLOURS.items()]
    assert seen(read_captioned(make(tmp_path, how))) == due
    keys = [r.key for r in read_captioned(make(tmp_path, how))]
    assert len(set(keys)) == 3


def test_a_data_set_of_the_library(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [Image.new("RGB", (4, 4), c) for c in COLOURS.values()], "text": [f"colour {n}" for n in COLOURS]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    assert seen(read_captioned(f"dataset:{tmp_path / 'set'}")) == [(f"colour {n}", c) for n, c in COLOURS.items()]


def test_captions_can_be_made_of_other_fields_and_leave_pictures_out(tmp_path):
    where = tars(tmp_path, "json")
    found = seen(read_captioned(where, lambda row: None if row["caption"].endswith("b") else row["caption"].upper()))
    assert [c for c, _ in found] == ["COLOUR A", "COLOUR C"]


def test_transparency_is_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("nothing")
    assert seen(read_captioned(str(tmp_path))) == [("nothing", (255, 255, 255))]


def test_squared_covers_and_cuts_the_middle():
    image = Image.new("RGB", (9, 3), "red")
    image.paste((0, 255, 0), (3, 0, 6, 3))
    cut = covering(image, 3, 3)
    assert cut.size == (3, 3)
    assert {cut.getpixel((x, y)) for x in range(3) for y in range(3)} == {(0, 255, 0)}
    assert covering(Image.new("RGB", (100, 37)), 64, 64).size == (64, 64)


def test_refused(tmp_path):
    with pytest.raises(SettingError, match="no folder"):
        list(read_captioned(str(tmp_path / "none")))
    with pytest.raises(SettingError, match="no pictures"):
        list(read_captioned(str(tmp_path)))
    with pytest.raises(SettingError, match="names no file"):
        list(read_captioned(str(tmp_path / "*.tar")))
    (tmp_path / "a.png").write_bytes(png((0, 0, 0)))
    with pytest.raises(SettingError, match=r"a\.png has no caption"):
        list(read_captioned(str(tmp_path)))
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.png").write_bytes(png((0, 0, 0))[:40])
    with pytest.raises(SettingError, match="no picture that can be read"):
        list(read_captioned(str(tmp_path)))
    (tmp_path / "a.tar").write_bytes(b"x" * 2000)
    with pytest.raises(SettingError, match="not a whole tar"):
        list(read_captioned(str(tmp_path / "a.tar")))
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        info = tarfile.TarInfo("k.png")
        info.size = len(png((0, 0, 0)))
        tar.addfile(info, io.BytesIO(png((0, 0, 0))))
    with pytest.raises(SettingError, match=r"b\.tar:k has no caption"):
        list(read_captioned(str(tmp_path / "b.tar")))
