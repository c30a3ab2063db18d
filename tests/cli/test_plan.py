"""`allaprima plan`: files and options to plans; the mathematics is tested in tests/fleet."""

import json
from pathlib import Path

import pytest
import yaml
from command_line import allaprima

from allaprima.fleet.plan_file import read_plan, read_recording, write_recording
from allaprima.fleet.workload import STAGES, Recording

SECONDS = {"text": 0.01, "student_step": 0.05, "oracle": 0.02, "teacher_step": 0.08, "decode": 0.04}
PLAN = {
    "pictures_a_second": 10,
    "p95": 4,
    "student_steps": 4,
    "teacher_steps": 20,
    "teacher_only": {"steps": 40, "quality": 0.8},
    "quality": 0.7,
    "hardware": {"gpu": {"cost": 2.0, "batch": 8, "seconds": SECONDS}},
    "frontier": [
        {"threshold": 0.2, "share": 0.1, "quality": 0.6},
        {"threshold": 0.5, "share": 0.4, "quality": 0.75},
        {"threshold": 0.8, "share": 0.8, "quality": 0.79},
    ],
}


def write(folder, **changes):
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in {**PLAN, **changes}.items() if v is not None}))
    return path


def found(capsys, *args):
    capsys.readouterr()
    allaprima("plan", *args, "--json")
    return json.loads(capsys.readouterr().out)


def test_the_cheapest_threshold_that_is_good_enough(tmp_path, capsys):
    made = found(capsys, write(tmp_path), "--simulate", 0)
    assert made["chosen"]["threshold"] == 0.5
    assert made["chosen"]["simulated"] is None
    good = [p for p in made["thresholds"] if p["quality"] >= 0.7]
    assert made["chosen"]["cost_an_hour"] == min(p["cost_an_hour"] for p in good)
    assert made["chosen"]["cost_an_hour"] == sum(2 * p["machines"] for p in made["chosen"]["pools"])
    assert made["chosen"]["cost_a_thousand_pictures"] == pytest.approx(made["chosen"]["cost_an_hour"] / 36)
    assert made["saving"] == pytest.approx(1 - made["chosen"]["cost_an_hour"] / made["teacher_only"]["cost_an_hour"])


def test_options_stand_in_place_of_the_file(tmp_path, capsys):
    path = write(tmp_path)
    made = found(capsys, path, "--pictures-a-day", 8_640_000, "--cost-at-most", 1e6, "--layout", "apart", "--simulate", 0)
    assert made["demand"]["pictures_a_second"] == pytest.approx(100)
    assert made["chosen"]["threshold"] == 0.8
    assert {p["layout"] for p in made["thresholds"]} == {"apart"}


def test_the_plan_is_simulated_shown_and_drawn(tmp_path, capsys):
    picture = tmp_path / "plan.png"
    allaprima("plan", write(tmp_path), "--simulate", 1000, "--layout", "apart", "--plot", picture)
    said = capsys.readouterr().out
    assert "given, not measured" in said
    assert "simulated" in said
    assert "a saving of" in said
    assert "Quality 0.75 against 0.8" in said
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"p95": -1}, ["p95=-1", "above 0"]),
        ({"p95": "soon"}, ["p95", "soon"]),
        ({"speed": 3}, ["speed"]),
        ({"pictures_a_second": None}, ["pictures_a_second or pictures_a_day"]),
        ({"quality": None}, ["3 thresholds", "quality", "cost_at_most"]),
        ({"quality": 0.9}, ["quality=0.9", "Nearest: quality: 0.79"]),
        ({"quality": None, "cost_at_most": 0.5}, ["cost_at_most=0.5", "Nearest"]),
        ({"p95": 0.5}, ["p95=0.5", "Nearest: p95 of"]),
        ({"hardware": {}}, ["hardware is empty"]),
        ({"hardware": {"gpu": {"cost": 1, "batch": 8}}}, ["hardware.gpu", "recorded"]),
        ({"hardware": {"gpu": {"cost": 1, "seconds": SECONDS}}}, ["batch"]),
        ({"frontier": [{"threshold": 1, "share": 1.5, "quality": 1}]}, ["share=1.5"]),
        ({"frontier": {"calibration": "none.json"}}, ["none.json", "calibrate"]),
    ],
)
def test_what_can_t_be_planned_is_named(tmp_path, capsys, changes, words):
    allaprima("plan", write(tmp_path, **changes), "--simulate", 0, expect=2)
    said = " ".join(capsys.readouterr().err.split())
    for word in words:
        assert word in said


def test_too_few_machines(tmp_path, capsys):
    few = {"gpu": {"cost": 2.0, "batch": 8, "seconds": SECONDS, "at_most": 1}}
    allaprima("plan", write(tmp_path, hardware=few, pictures_a_second=100), "--simulate", 0, expect=2)
    said = " ".join(capsys.readouterr().err.split())
    assert "at_most" in said
    assert "Nearest:" in said


def test_files_that_can_t_be_read(tmp_path, capsys):
    for text in ("[1, 2]", "a: [", "3"):
        path = tmp_path / "plan.yaml"
        path.write_text(text)
        allaprima("plan", path, expect=2)
        assert str(path) in "".join(capsys.readouterr().err.splitlines())
    allaprima("plan", write(tmp_path), "--simulate", 5, expect=2)


def test_recorded_times_are_measured_ones(tmp_path):
    recording = Recording("a machine", 16, {s: [0.1, 0.2, 0.3] for s in STAGES})
    write_recording(tmp_path / "recorded.json", recording)
    assert read_recording(tmp_path / "recorded.json") == recording
    task = read_plan(write(tmp_path, hardware={"here": {"cost": 1.0, "recorded": "recorded.json"}}))
    (kind,) = task.kinds
    assert kind.measured
    assert kind.batch == 16
    assert kind.mean("teacher") == pytest.approx(0.2)


def test_a_calibration_and_a_report_make_a_frontier(tmp_path):
    """Of the bundled pair: shares from mean steps, thresholds from the calibration's own scores."""
    from importlib import resources

    calibration = str(resources.files("allaprima") / "bundled/emoji/calibration.json")
    points = [{"method": "adaptive regenerate", "steps": 3 + 14 * s, "judge": 16 + s} for s in (0.25, 0.5)]
    (tmp_path / "frontier.json").write_text(json.dumps({"points": [*points, {"method": "other", "steps": 99, "judge": 1}]}))
    frontier = {"calibration": calibration, "report": "frontier.json"}
    task = read_plan(write(tmp_path, student_steps=3, teacher_steps=14, frontier=frontier, quality=16.3))
    scores = json.loads(Path(calibration).read_text())["scores"]
    for choice, share in zip(task.choices, (0.25, 0.5), strict=True):
        assert choice.share == pytest.approx(share)
        assert choice.quality == pytest.approx(16 + share)
        assert sum(s < choice.threshold for s in scores) / len(scores) == pytest.approx(share, abs=0.01)
