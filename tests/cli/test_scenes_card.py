"""The card of scenes through the verbs: plain English in, images out, calibrated, edited, served and judged exactly."""

import json

import pytest
from command_line import allaprima
from starlette.testclient import TestClient

from allaprima.calibration.artifact import Calibration
from allaprima.pipeline import AdaptivePipeline
from allaprima.serving.api.app import create_app
from tests.serving.served import LOCAL, service

PROMPTS = ["two red circles left of a blue star", "There are a star and 2 green squares.", "a heart"]


def rows(run):
    return [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes") / "run"
    allaprima("generate", *PROMPTS, "--card", "scenes", "--batch-size", "4", "--steps", "10", "--out", out)
    return out


def test_plain_english_is_generated_within_the_card_s_budget(run):
    made = rows(run)
    assert [row["prompt"] for row in made] == PROMPTS
    assert all(row["error"] is None and row["score"] is not None for row in made)
    assert {row["threshold"] for row in made} == {made[0]["threshold"]}
    assert (run / "sheet.png").exists()


def test_it_is_evaluated_exactly_and_by_kind(run, tmp_path):
    report = tmp_path / "evaluation.json"
    allaprima("evaluate", run, "--metrics", "judge,composition,oracle_score", "--out", report)
    metrics = json.loads(report.read_text())["sets"][0]["metrics"]
    assert metrics["judge"]["mean_over_pictures"] == metrics["composition"]["mean_over_pictures"]
    assert set(metrics["composition"]["kinds"]) == {"combo", "single"}


def test_an_image_is_generated_again_to_the_byte(run, capsys):
    allaprima("show", run / "images" / "00001.png", "--repeat")
    assert "byte-identical" in capsys.readouterr().out


def test_it_is_calibrated(tmp_path):
    out = tmp_path / "calibration.json"
    allaprima("calibrate", "--card", "scenes", "--samples", "20", "--budget", "15", "--steps", "20", "--out", out)
    made = Calibration.load(out)
    assert len(made.scores) == 20
    assert made.percentile == pytest.approx(55)


def test_several_attempts_are_calibrated_beside_every_control(tmp_path, capsys):
    out = tmp_path / "sequential.json"
    allaprima(
        "calibrate", "--card", "scenes", "--policy", "sequential", "--samples", "20", "--budget", "30",
        "--unit", "evaluations", "--drafts", "2", "--steps", "6", "--out", out,
    )  # fmt: skip
    said = " ".join(capsys.readouterr().err.split())
    for method in ("cascade", "student retried", "teacher alone", "student alone", "perfect oracle", "sent by"):
        assert method in said
    assert "scoring an image, its decoding included, costs" in said
    assert "worth its price here" in said
    policy = Calibration.load(out).policy
    assert policy is not None
    assert policy["kind"] == "sequential"
    allaprima(
        "generate", "two stars", "--card", "scenes", "--calibration", out, "--batch-size", "4", "--out", tmp_path / "run"
    )
    assert rows(tmp_path / "run")[0]["error"] is None
    allaprima("show", tmp_path / "run" / "images" / "00000.png", "--repeat")


def test_it_is_edited(run, tmp_path):
    allaprima(
        "edit", run / "images" / "00002.png", "two hearts", "--card", "scenes", "--strengths", "0.5,0.9", "--steps", "10",
        "--batch-size", "2", "--out", tmp_path / "edited",
    )  # fmt: skip
    made = rows(tmp_path / "edited")
    assert [row["edit"]["strength"] for row in made] == [0.5, 0.9]
    assert all(row["error"] is None for row in made)


def test_it_is_served():
    pipe = AdaptivePipeline.from_card("scenes")
    pipe.settings = pipe.settings.changed(batch_size=2)
    with TestClient(create_app(service(pipe)), base_url=LOCAL) as client:

        def ask(prompt):
            body = {"prompt": prompt, "seed": 1, "adaptive": {"threshold": 0.0}}
            return client.post("/v1/images/generations", json=body)

        assert ask("a star and two green squares").json()["data"][0]["b64_json"]
        refused = ask("ten thousand red circles")
        assert refused.status_code == 400
        assert "four red circles" in refused.text


@pytest.mark.parametrize(
    ("prompt", "nearest"),
    [
        ("a mauve star", "'a star'"),
        ("ten thousand red circles", "'four red circles'"),
        ("a red circle on the moon", "a red circle"),
        ("", "prompt"),
    ],
)
def test_what_is_no_scene_gets_the_nearest_one(prompt, nearest, tmp_path, capsys):
    allaprima("generate", prompt, "--card", "scenes", "--out", tmp_path / "out", expect=2)
    said = " ".join(capsys.readouterr().err.split())
    assert nearest in said
