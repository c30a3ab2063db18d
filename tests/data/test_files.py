import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from allaprima.core.errors import PromptError, RunFolderError, SettingError
from allaprima.data.images import png_bytes, read_chunks, save_png
from allaprima.data.prompts import PromptRow, read_prompts
from allaprima.data.sheet import SheetRow, contact_sheet


def write(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def test_text_csv_and_jsonl_say_the_same(tmp_path):
    text = write(tmp_path, "p.txt", "\ufeffcat, noto\n\n# a hash is a prompt too\n")
    assert [r.prompt for r in read_prompts(text)] == ["cat, noto", "# a hash is a prompt too"]
    table = write(tmp_path, "p.csv", 'Prompt,seed\n"cat, noto",3\n')
    lines = write(tmp_path, "p.jsonl", '{"prompt": "cat, noto", "seed": 3}\n"dog"\n')
    assert list(read_prompts(table)) == [PromptRow("cat, noto", 3)]
    assert list(read_prompts(lines)) == [PromptRow("cat, noto", 3), PromptRow("dog")]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": ""}\n', "line 2"),
        ("p.jsonl", "{oops\n", "line 1: not JSON"),
        ("p.csv", "a,b\n1,2\n", "'prompt'"),
        ("p.csv", "prompt,seed\ncat,many\n", "seed='many'"),
    ],
)
def test_a_bad_row_is_named(tmp_path, name, text, says):
    with pytest.raises(PromptError, match=says):
        list(read_prompts(write(tmp_path, name, text)))


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=40))
def test_chunks_come_back_in_any_script(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("png") / "a.png"
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    save_png(image, path, {"allaprima": json.dumps({"p": text}), "parameters": text})
    found = read_chunks(path)
    assert json.loads(found["allaprima"]) == {"p": text}
    assert found.get("parameters", "") == text
    assert path.read_bytes() == png_bytes(image, {"allaprima": json.dumps({"p": text}), "parameters": text})


def test_a_full_disk_is_said_and_leaves_nothing():
    from pathlib import Path

    image = Image.new("RGB", (64, 64))
    with pytest.raises(RunFolderError, match="cannot be written"):
        save_png(image, Path("/dev/full/x.png"), {})


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_png(Image.new("RGB", (8, 8), "red"), path, {})
    before = path.read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunFolderError, match="No space left on device"):
        save_png(Image.new("RGB", (8, 8), "blue"), path, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_what_is_not_a_picture_is_said(tmp_path):
    with pytest.raises(SettingError, match="cannot be read as a picture"):
        read_chunks(write(tmp_path, "a.png", "hello"))


def test_the_sheet_shows_draft_and_final():
    red, blue = Image.new("RGB", (64, 64), (255, 0, 0)), Image.new("RGB", (64, 64), (0, 0, 255))
    sheet = contact_sheet(
        [SheetRow("cat", red, blue, 0.4, 0.5, "refine"), SheetRow("dog", None, blue, None, None, "regenerate")]
    )
    colours = {c for _, c in sheet.getcolors(2**24)}
    assert {(255, 0, 0), (0, 0, 255)} <= colours
