"""`allaprima generate` with a calibrated budget on the toy pair: steering, what a kill leaves of it, and drift."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from calibrated import SETTINGS, Counting, allaprima, greys, serve, toy_pipeline

from allaprima.calibration.artifact import Calibration
from allaprima.calibration.budget import Prices
from allaprima.cascade.sequential import SequentialPolicy
from allaprima.data.images import read_chunks
from allaprima.experiments.drift_watch import DriftWatch
from allaprima.pipeline import AdaptivePipeline

PRICES = Prices.from_steps(2, 3)


def calibration(policy=None, n=200):
    """Held-out greys uniform in 0..1."""
    pipe = toy_pipeline(Counting())
    of = pipe.student_settings(SETTINGS), pipe.action_settings(SETTINGS), pipe.fingerprints()
    return Calibration.make(np.linspace(0.001, 0.999, n).tolist(), 3.5, PRICES, *of, "0" * 64, policy=policy)


@pytest.fixture
def prompts(tmp_path):
    """Darker than the held-out ones, so that the calibrated threshold would overspend; one is refused."""
    path = tmp_path / "prompts.txt"
    rows = [f"{0.7 * float(p):.4f}" for p in greys(30)]
    path.write_text("\n".join([*rows[:3], "7", *rows[3:]]) + "\n")
    return path


def generate(prompts, out, *args, expect=2):
    """Exit code 2 tells of the refused prompt."""
    allaprima("generate", "--prompts-file", prompts, "--out", out, *args, expect=expect)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def rows(out):
    return [json.loads(line, parse_constant=pytest.fail) for line in (out / "results.jsonl").read_text().splitlines()]


def said(capsys):
    return " ".join(capsys.readouterr().err.split())


def test_steering_spends_the_budget_and_a_fixed_threshold_does_not(tmp_path, prompts, monkeypatch, capsys):
    serve(monkeypatch, Counting(), calibration())
    generate(prompts, tmp_path / "fixed")
    generate(prompts, tmp_path / "steered", "--steer")
    fixed, steered = ([r for r in rows(tmp_path / n) if r["error"] is None] for n in ("fixed", "steered"))
    cost = [np.mean([r["steps"] for r in some]) for some in (fixed, steered)]
    assert cost[0] > 3.5 * 1.1
    assert abs(cost[1] - 3.5) < abs(cost[0] - 3.5)
    assert f"steered to {cost[1]:.4g} mean steps a picture; 3.5 were asked for" in said(capsys)
    assert len({r["threshold"] for r in fixed}) == 1
    assert len({r["threshold"] for r in steered}) > 3
    for r in steered:
        assert (r["score"] >= r["threshold"]) == (r["decision"] == "accept")


def test_batch_sizes_do_not_change_what_is_decided(tmp_path, prompts, monkeypatch):
    serve(monkeypatch, Counting(), calibration())
    for size in (2, 4):
        generate(prompts, tmp_path / str(size), "--steer", "--batch-size", size)
    assert rows(tmp_path / "2") == rows(tmp_path / "4")


class Killed(BaseException):
    """Nothing may take it for a failed picture."""


@pytest.mark.parametrize("pictures", [1, 6, 9, 14, 25, 29])
def test_killed_and_resumed_is_byte_identical(tmp_path, prompts, monkeypatch, pictures):
    serve(monkeypatch, Counting(), calibration())
    generate(prompts, tmp_path / "whole", "--steer")
    stream = AdaptivePipeline.stream

    def cut(self, *args):
        good = 0
        for result in stream(self, *args):
            if good == pictures:
                raise Killed
            good += result.error is None
            yield result

    for _ in range(2):
        with monkeypatch.context() as m:
            m.setattr(AdaptivePipeline, "stream", cut)
            with pytest.raises(Killed):
                generate(prompts, tmp_path / "killed", "--steer", "--resume")
        done = sorted(int(p.stem) for p in (tmp_path / "killed" / "images").glob("*.png"))
        if 2 * pictures >= 30:
            break
        serve(monkeypatch, Counting(), calibration())
    if pictures in (6, 9, 14):
        assert done != list(range(len(done))), "what was finished is the first pictures: this shows nothing"
    serve(monkeypatch, Counting(), calibration())
    generate(prompts, tmp_path / "killed", "--steer", "--resume")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_folder_steered_otherwise_is_another_run(tmp_path, prompts, monkeypatch, capsys):
    serve(monkeypatch, Counting(), calibration())
    generate(prompts, tmp_path / "run", "--steer")
    for made, args in ((calibration(), ["--budget", "3"]), (calibration(n=100), [])):
        serve(monkeypatch, Counting(), made)
        generate(prompts, tmp_path / "run", "--steer", "--resume", *args)
        assert "belongs to another run (steered was" in said(capsys)


def test_show_repeats_steered_pictures_from_their_own_threshold(tmp_path, prompts, monkeypatch, capsys):
    serve(monkeypatch, Counting(), calibration())
    generate(prompts, tmp_path / "run", "--steer", "--budget", "2.3")
    pictures = sorted((tmp_path / "run" / "images").glob("*.png"))
    thresholds = [json.loads(read_chunks(p)["allaprima"])["threshold"] for p in pictures]
    assert -np.inf in thresholds or len(set(thresholds)) > 3
    for picture in pictures[:10]:
        allaprima("show", picture, "--repeat")
        assert "byte-identical" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--threshold", "0.5"], "not threshold=0.5"),
        (["--student-only"], "not student-only"),
        (["--teacher-only"], "not teacher-only"),
        (["--budget", "9"], "budget=9.0"),
        (["--student-steps", "3"], "settings.student_steps was 2, is now 3"),
    ],
)
def test_what_cannot_be_steered_is_said(tmp_path, prompts, monkeypatch, capsys, args, says):
    serve(monkeypatch, Counting(), calibration())
    generate(prompts, tmp_path / "run", "--steer", *args)
    assert says in said(capsys)
    assert not (tmp_path / "run").exists()


def test_only_thresholds_are_steered(tmp_path, prompts, monkeypatch, capsys):
    serve(
        monkeypatch,
        Counting(),
        calibration(SequentialPolicy(0.5, regenerate_below=0.3, margin=math.inf)),
    )
    generate(prompts, tmp_path / "run", "--steer")
    assert "policy is sequential, and only a threshold can be steered" in said(capsys)


@pytest.mark.parametrize("steer", [["--steer"], []])
def test_drift_is_said_once_while_painting_and_once_at_the_end(tmp_path, monkeypatch, capsys, steer):
    dark, alike = tmp_path / "dark.txt", tmp_path / "alike.txt"
    dark.write_text("\n".join(f"{0.4 * float(p):.4f}" for p in greys(40)))
    alike.write_text("\n".join(greys(40)))
    serve(monkeypatch, Counting(), calibration())
    generate(alike, tmp_path / "alike", *steer, expect=0)
    assert "note:" not in said(capsys)
    # Under steering half is sent whatever comes; what is watched is the calibrated threshold.
    serve(monkeypatch, Counting(), calibration())
    generate(dark, tmp_path / "dark", *steer, expect=0)
    words = said(capsys)
    assert words.count("note: drift, alarmed at picture") == 2
    assert words.rindex("note: drift") > words.index("40 pictures:") > words.index("note: drift")
    assert "drift" not in " ".join(map(str, rows(tmp_path / "dark")))
    # A resumed run knows all of it.
    serve(monkeypatch, Counting(), calibration())
    generate(dark, tmp_path / "dark", *steer, "--resume", expect=0)
    assert "100.0% of 40 drafts fell short" in said(capsys)
    # A threshold of the caller's own was never calibrated.
    generate(dark, tmp_path / "own", "--threshold", "0.5", expect=0)
    assert "note:" not in said(capsys)


def test_results_out_of_order_are_watched_in_order():
    class Console:
        lines = ()

        def print(self, line):
            self.lines += (line,)

    console = Console()
    made = calibration()
    watch = DriftWatch(made.monitor(made.threshold), made.threshold, console)
    # Accepted ones first, sixteen in a row: taken as they come, that would be an alarm.
    good, poor = range(0, 32, 2), range(1, 32, 2)
    rash = made.monitor(made.threshold)
    rash.update([False] * 16)
    assert rash.alarm
    for i in (*good, *poor):
        watch.see(i, 0.9 if i % 2 == 0 else float("nan") if i == 5 else 0.1)
    watch.see(32, None)
    assert (watch.monitor.pictures, watch.monitor.fallen) == (32, 16)
    assert console.lines == ()
