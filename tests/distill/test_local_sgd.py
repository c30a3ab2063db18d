"""Processes that average their weights every few steps: when they meet, what they agree on, where they end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import local_sgd_work
import pytest
import torch

from allaprima.core.errors import SettingError
from allaprima.distill.local_sgd import LocalSGD, run_locally


def told(folder, processes=2):
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


def test_weights_meet_every_second_step(tmp_path):
    run_locally(local_sgd_work.meet, (tmp_path,), processes=2, every=2)
    first, second = told(tmp_path)
    # Process 0 adds 0 a step, process 1 adds 1. They meet at steps 2 and 4: (0 + 2) / 2 = 1, then (1 + 3) / 2 = 2.
    assert [w for w, _, _ in first] == [0, 1, 1, 2, 2]
    assert [w for w, _, _ in second] == [1, 1, 2, 2, 3]
    assert [loss for _, loss, _ in first] == [0, 0.5, 0, 0.5, 0]
    assert [loss for _, loss, _ in second] == [1, 0.5, 1, 0.5, 1]
    for _, _, agreed in (*first, *second):
        assert agreed in (True, False)
    assert [agreed for *_, agreed in first] == [agreed for *_, agreed in second] == [False, True, False, True, False]


def test_a_training_in_two_processes_ends_where_it_should_and_twice_alike(tmp_path):
    ends = []
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
        run_locally(local_sgd_work.descend, (tmp_path / name,), processes=2)
        ends.append(told(tmp_path / name)[0])
    assert torch.allclose(torch.tensor(ends[0]), torch.ones(2), atol=0.05)
    assert ends[0] == ends[1]


def test_one_process_is_a_training_like_any_other(tmp_path):
    alone = LocalSGD(4)
    assert alone.processes == 1
    assert alone.agree(True)
    assert alone.mean(torch.tensor(2.0)) == 2
    with pytest.raises(SettingError, match="every=0"):
        LocalSGD(0)
    with pytest.raises(SettingError, match="--processes 1000"):
        run_locally(local_sgd_work.meet, (tmp_path,), processes=1000)


def test_a_killed_training_leaves_no_process_behind(tmp_path):
    code = (
        "from pathlib import Path; import local_sgd_work; from allaprima.distill.local_sgd import run_locally;"
        f"run_locally(local_sgd_work.wait, (Path({str(tmp_path)!r}),), processes=2)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", f"if __name__ == '__main__':\n    {code}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])},
    )
    files = [tmp_path / f"{rank}.pid" for rank in range(2)]
    until = time.monotonic() + 120
    while not all(f.exists() and f.read_text() for f in files):
        assert time.monotonic() < until
        time.sleep(0.2)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for f in files:
        while Path(f"/proc/{f.read_text()}/stat").exists():
            assert time.monotonic() < until, "a process of the training goes on"
            time.sleep(0.2)
