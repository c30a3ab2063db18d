"""`allaprima risk`: files to thresholds; the mathematics is tested in tests/calibration/test_risk.py."""

import json

import numpy as np
import pytest
from calibrated import allaprima

from allaprima.calibration.risk import accepted_risk, expected_risk, sure_risk

N = 800


@pytest.fixture
def judged():
    rng = np.random.default_rng(0)
    scores = rng.random(N)
    losses = (rng.random(N) > scores).astype(float)
    return scores, losses


def write_csv(path, scores, losses):
    path.write_text("score,loss\n" + "".join(f"{s!r},{y}\n" for s, y in zip(scores.tolist(), losses, strict=True)))
    return path


@pytest.mark.parametrize("promise", ["accepted", "sure", "expected"])
def test_both_formats_give_the_functions_threshold(tmp_path, judged, capsys, promise):
    scores, losses = judged
    a = write_csv(tmp_path / "a.csv", scores, losses)
    b = tmp_path / "b.jsonl"
    rows = [{"score": s, "student_preferred": bool(1 - y)} for s, y in zip(scores.tolist(), losses, strict=True)]
    b.write_text("\n".join(map(json.dumps, rows)) + "\n")
    due = {
        "accepted": lambda: accepted_risk(scores, losses, 0.2, 0.1),
        "sure": lambda: sure_risk(scores, losses, 0.2, 0.1),
        "expected": lambda: expected_risk(scores, losses, 0.2),
    }[promise]()
    for path in (a, b):
        allaprima("risk", path, "--alpha", 0.2, "--promise", promise, "--json")
        found = json.loads(capsys.readouterr().out)
        assert float(found["threshold"]) == due.threshold
        assert 0 < found["accepted"] < 1
    allaprima("risk", a, "--alpha", 0.2, "--promise", promise)
    assert f"threshold {due.threshold:.6g}" in " ".join(capsys.readouterr().out.split())


def test_nothing_can_be_promised(tmp_path, judged, capsys):
    scores, _ = judged
    allaprima("risk", write_csv(tmp_path / "a.csv", scores, np.ones(N)), "--alpha", 0.2)
    assert "nothing can be accepted" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("name", "text", "args", "words"),
    [
        ("a.csv", "score,vote\n1,2\n", (), "row 1"),
        ("a.csv", "score,loss\n0.5,x\n", (), "row 1"),
        ("a.jsonl", "{", (), "not JSONL"),
        ("a.csv", "score,loss\n0.5,1\n0.6,0\n", ("--promise", "maybe"), "'maybe' is not known"),
        ("a.csv", "score,loss\n0.5,1\n0.6,3\n", (), "losses from"),
    ],
)
def test_refused(tmp_path, capsys, name, text, args, words):
    (tmp_path / name).write_text(text)
    allaprima("risk", tmp_path / name, *args, expect=2)
    assert words in " ".join(capsys.readouterr().err.split())
    allaprima("risk", tmp_path / "none.csv", expect=2)
