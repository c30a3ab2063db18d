"""`allaprima calibrate --search` and `--target` on the toy pair, and `generate --calibration` with what they found."""

import json

import pytest
from calibrated import SETTINGS, Counting, allaprima, greys, serve

from allaprima.calibration.artifact import Calibration
from allaprima.pipeline import AdaptivePipeline

N = 36


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(greys(N)) + "\n")
    return path


def calibrate(prompts, out, *args, expect=0):
    allaprima("calibrate", "--prompts-file", prompts, "--out", out, *args, expect=expect)


def said(capsys):
    return " ".join(capsys.readouterr().err.split())


def test_search_finds_the_cheapest_way_to_send_everything(tmp_path, prompts, monkeypatch, capsys):
    # The toy teacher adds .3 however many steps it takes: what sends most drafts for the budget is best.
    serve(monkeypatch, Counting())
    calibrate(prompts, tmp_path / "c.json", "--search", "--budget", 8)
    made = Calibration.load(tmp_path / "c.json")
    assert made.settings["student_steps"] + made.action["teacher_steps"] <= 8
    assert made.percentile == 100
    assert "36 prompts" in said(capsys)
    painted = {p: p.stat().st_mtime_ns for p in (tmp_path / "c.json.pictures").iterdir()}
    calibrate(prompts, tmp_path / "c.json", "--search", "--budget", 8)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "c.json.pictures").iterdir()} == painted, "nothing painted twice"
    assert Calibration.load(tmp_path / "c.json").threshold == made.threshold


def test_generate_takes_the_settings_that_were_found(tmp_path, prompts, monkeypatch):
    serve(monkeypatch, Counting())
    calibrate(prompts, tmp_path / "c.json", "--search", "--budget", 8)
    made = Calibration.load(tmp_path / "c.json")
    allaprima("generate", "0.3", "--calibration", tmp_path / "c.json", "--no-nearest", "--out", tmp_path / "out")
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["settings"]["teacher_steps"] == made.action["teacher_steps"] != SETTINGS.teacher_steps
    assert run["settings"]["student_steps"] == made.settings["student_steps"]
    assert run["threshold"] == made.threshold


def test_a_calibration_of_other_models_is_refused(tmp_path, prompts, monkeypatch, capsys):
    serve(monkeypatch, Counting())
    calibrate(prompts, tmp_path / "c.json", "--budget", 3.5)
    serve(monkeypatch, Counting(fingerprint="grey-2"))
    allaprima("generate", "0.3", "--calibration", tmp_path / "c.json", "--out", tmp_path / "out", expect=2)
    assert "fingerprints.oracle was 'grey-1', is now 'grey-2'" in said(capsys)
    assert not (tmp_path / "out").exists()


def test_a_policys_run_says_which_policy(tmp_path, prompts, monkeypatch):
    serve(monkeypatch, Counting())
    calibrate(prompts, tmp_path / "c.json", "--budget", 3.5, "--policy", "recheck")
    allaprima("generate", "0.3", "--calibration", tmp_path / "c.json", "--no-nearest", "--out", tmp_path / "out")
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["policy"] == Calibration.load(tmp_path / "c.json").policy


def test_a_target_becomes_the_least_budget_that_reaches_it(tmp_path, prompts, monkeypatch, capsys):
    serve(monkeypatch, Counting())
    pipe = AdaptivePipeline.from_card("toy")
    calibrate(prompts, tmp_path / "all.json", "--target", 0.6)
    made = Calibration.load(tmp_path / "all.json")
    share = made.percentile / 100
    assert made.budget == pytest.approx(2 + 3 * share)
    drafts = sorted(made.scores)
    # The teacher adds .3 (cut off at 1, which its drafts of low score never reach).
    m = round(share * N)
    gained = sum(min(s + 0.3, 1) - s for s in drafts[:m]) / N
    assert sum(drafts) / N + gained == pytest.approx(0.6, abs=0.3 / N + 0.02)
    assert pipe.settings.teacher_steps == 3
    assert "a mean oracle of 0.6 takes" in said(capsys)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--target", "9"), "out of reach"),
        (("--target", "0.6", "--budget", "4"), "leave --budget and --search out"),
        (("--search", "--unit", "seconds"), "count in steps"),
        (("--search", "--budget", "8", "--metric", "judge"), "metric='judge' is not known"),
        (("--search", "--budget", "1"), "nothing for the teacher"),
    ],
)
def test_refused(tmp_path, prompts, monkeypatch, capsys, args, words):
    serve(monkeypatch, Counting())
    calibrate(prompts, tmp_path / "c.json", *args, expect=2)
    assert words in said(capsys)
    assert not (tmp_path / "c.json").exists()
