"""`allaprima generate --engine ray` leaves the folder that one process leaves, whoever is killed and goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import allaprima

RUN = ["generate", "--batch-size", "2", "--steps", "2", "--student-steps", "1", "--threshold", "0.75"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray leaves its own subprocesses to themselves.
def test_killed_and_resumed_on_ray_is_what_one_process_paints(tmp_path):
    pytest.importorskip("ray")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{c}, noto\n" for c in ("panda", "kitten", "rocket", "owl", "ghost")))
    common = [*RUN, "--prompts-file", str(prompts), "--images-per-prompt", "4", "--out"]
    allaprima(*common, tmp_path / "whole")
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    ray = ["--engine", "ray", "--workers", "2"]
    command = [sys.executable, "-m", "allaprima", *common, str(tmp_path / "killed"), *ray]
    child = subprocess.Popen(command, env=threads, stderr=subprocess.DEVNULL)
    images = tmp_path / "killed" / "images"
    limit = time.monotonic() + 300
    while len(list(images.glob("*.png"))) < 2 and child.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    found = len(list(images.glob("*.png")))
    assert 2 <= found < 20, "the run should have been killed in the middle"
    ended = subprocess.run([*command, "--resume"], env=threads, capture_output=True, text=True, timeout=400)
    assert ended.returncode == 0, ended.stderr
    assert f"{found} of 20 pictures were there already" in ended.stderr
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--engine", "rey"], "process (here), or ray"),
        (["--ray-address", "auto"], "is for --engine ray"),
        (["--engine", "ray", "--steer"], "leave it out"),
    ],
)
def test_options_that_go_wrong_are_refused(tmp_path, capsys, args, says):
    allaprima("generate", "red apple, noto", "--out", tmp_path / "run", *args, expect=2)
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()
