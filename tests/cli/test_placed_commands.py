"""`--backend`, `--device` and their like on the command line: what is refused, what is kept, what can be painted again."""

import json
import sys

import pytest
from typer.testing import CliRunner

from allaprima.cli.app import app
from allaprima.core.errors import SettingError
from allaprima.data.images import read_chunks


def run(*args):
    result = CliRunner().invoke(app, list(args))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize("verb", [("generate", "red apple, noto"), ("calibrate",)])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, verb):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(SettingError, match=r"pip install 'allaprima\[openvino\]'"):
        run(*verb, "--backend", "openvino", "--out", str(tmp_path / "out"))


def test_a_picture_keeps_how_it_was_made_and_is_painted_again(tmp_path):
    out = tmp_path / "out"
    told = ("generate", "red apple, noto", "--student-only", "--student-steps", "1", "--batch-size", "1", "--no-nearest")
    run(*told, "--dtype", "bfloat16", "--lazy-teacher", "--out", str(out))
    picture = out / "images" / "00000.png"
    account = json.loads(read_chunks(picture)["allaprima"])
    assert account["placement"] == {"dtype": "bfloat16", "lazy_teacher": True}
    assert account["fingerprints"]["backend"] == "eager-bfloat16-cpu"
    assert "byte-identical" in run("show", str(picture), "--repeat").output
    run(*told, "--out", str(tmp_path / "usual"))
    assert "placement" not in json.loads(read_chunks(tmp_path / "usual" / "images" / "00000.png")["allaprima"])
