"""`--backend`, `--device` and their like on the command line: what is refused, what is kept, what can be painted again."""

import json
import sys

import pytest
from command_line import allaprima

from allaprima.data.images import read_chunks


@pytest.mark.parametrize("verb", [("generate", "red apple, noto"), ("calibrate",)])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, capsys, verb):
    monkeypatch.setitem(sys.modules, "openvino", None)
    allaprima(*verb, "--backend", "openvino", "--out", tmp_path / "out", expect=2)
    assert "pip install 'allaprima[openvino]'" in " ".join(capsys.readouterr().err.split())


def test_a_picture_keeps_how_it_was_made_and_is_painted_again(tmp_path, capsys):
    out = tmp_path / "out"
    told = ("generate", "red apple, noto", "--student-only", "--student-steps", "1", "--batch-size", "1", "--no-nearest")
    allaprima(*told, "--dtype", "bfloat16", "--lazy-teacher", "--out", out)
    picture = out / "images" / "00000.png"
    account = json.loads(read_chunks(picture)["allaprima"])
    assert account["placement"] == {"dtype": "bfloat16", "lazy_teacher": True}
    assert account["fingerprints"]["backend"] == "eager-bfloat16-cpu"
    allaprima("show", picture, "--repeat")
    assert "byte-identical" in capsys.readouterr().out
    allaprima(*told, "--out", tmp_path / "usual")
    assert "placement" not in json.loads(read_chunks(tmp_path / "usual" / "images" / "00000.png")["allaprima"])
