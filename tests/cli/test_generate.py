"""The command line as a user meets it: real weights, few pictures, and what happens to bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import allaprima

RUN = ["generate", "--batch-size", "4", "--steps", "4", "--student-steps", "2", "--threshold", "0.75"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_leaves_pictures_rows_and_a_sheet(tmp_path):
    out = tmp_path / "run"
    allaprima(*RUN, "red apple, noto", "crown, twemoji", "--out", out, "--seed", 7)
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [r["prompt"] for r in rows] == ["red apple, noto", "crown, twemoji"]
    assert [r["seed"] for r in rows] == [7, 8]
    for r in rows:
        assert (out / r["image"]).exists()
        assert (r["decision"] == "accept") == (r["score"] >= r["threshold"])
        assert r["steps"] == (2 if r["decision"] == "accept" else 6)
    assert (out / "sheet.png").exists()


def test_the_same_run_twice_is_the_same_bytes_and_is_not_overwritten(tmp_path, capsys):
    args = [*RUN, "red apple, noto", "--out"]
    allaprima(*args, tmp_path / "a")
    allaprima(*args, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    allaprima(*args, tmp_path / "a", expect=2)
    assert "--resume" in capsys.readouterr().err
    allaprima(*RUN, "crown, noto", "--out", tmp_path / "a", expect=2)
    assert "belongs to another run" in capsys.readouterr().err
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.slow
def test_killed_and_resumed_is_byte_identical(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(
        "".join(f"{c}, {s}\n" for c in ("panda", "pizza", "rocket", "owl", "ghost") for s in ("noto", "twemoji"))
    )
    common = [*RUN, "--prompts-file", str(prompts), "--images-per-prompt", "3", "--out"]
    allaprima(*common, tmp_path / "whole")
    # As many as this process has (conftest.py): other sums, other last bits.
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = subprocess.Popen([sys.executable, "-m", "allaprima", *common, str(tmp_path / "killed")], env=threads)
    images = tmp_path / "killed" / "images"
    limit = time.monotonic() + 120
    while len(list(images.glob("*.png"))) < 6 and child.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    found = len(list(images.glob("*.png")))
    assert 6 <= found < 30, "the run should have been killed in the middle"
    allaprima(*common, tmp_path / "killed", "--resume")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_show_repeats_a_picture_byte_for_byte(tmp_path, capsys):
    allaprima(*RUN, "red apple, noto", "crown, twemoji", "ghost, noto", "--out", tmp_path / "run")
    for i in range(3):
        allaprima("show", tmp_path / "run" / "images" / f"{i:05d}.png", "--repeat")
        assert "byte-identical" in capsys.readouterr().out


def test_one_bad_prompt_leaves_the_others(tmp_path, capsys):
    long = "a very " * 30 + "long prompt"
    allaprima(*RUN, "--no-nearest", "red apple, noto", long, "--out", tmp_path / "run", expect=2)
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert rows[0]["error"] is None
    assert "tokens" in rows[1]["error"]
    assert (tmp_path / "run" / "images" / "00000.png").exists()


def test_an_unknown_word_is_painted_as_the_nearest_concept_and_said(tmp_path, capsys):
    allaprima(*RUN, "kitten, noto", "--out", tmp_path / "run")
    assert "'kitten, noto' is not a concept this card knows; painting 'cat, noto'" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--card", "emojy"], "Did you mean 'emoji'"),
        (["--solver", "dpm"], "dpm_solver"),
        (["--steps", "0"], "teacher_steps=0"),
        (["--sigma", "1.5"], "out of range"),
        (["--last-time", "999"], "last_time=999.0"),
        (["--solver", "heun", "--last-time", "20"], "means nothing to 'heun'"),
        (["--guidance-interval", "800", "100"], "guidance interval 800.0..100.0 is empty"),
        (["--guidance-interval", "0", "9", "--guidance-outside", "-1"], "guidance outside the interval, -1.0"),
        (["--budget", "99"], "99.0"),
        (["--threshold", ".5", "--budget", "10"], "contradict"),
        (["--student-only", "--teacher-only"], "contradict"),
        (["--prompts-file", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_bad_options_end_with_2_and_say_what_to_do(tmp_path, capsys, args, says):
    allaprima("generate", "red apple, noto", "--out", tmp_path / "run", *args, expect=2)
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_no_prompts_is_said(tmp_path, capsys):
    allaprima("generate", "--out", tmp_path / "run", expect=2)
    assert "no prompts" in capsys.readouterr().err


def test_someone_elses_folder_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("precious")
    allaprima(*RUN, "red apple, noto", "--out", tmp_path, expect=2)
    assert "not a run of allaprima's" in capsys.readouterr().err
    assert contents(tmp_path) == {"thesis.txt": b"precious"}
