"""Several processes, or several batches a step, do what one does; shards and copies alike."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from devices_cases import CONFIG, Line, matching_training, plain_training
from safetensors.torch import load_file

from allaprima.core.errors import SettingError, TrainingError
from allaprima.distill.devices import Devices
from allaprima.distill.loop import step_generator, train


def kept(folder):
    return load_file(folder / "checkpoint.safetensors")


def close(a, b, tolerance=2e-4):
    """Networks after a few steps of Adam, which turns rounding of small gradients into steps of the learning rate's size."""
    weights = [k for k in a if not k.startswith("optim")]
    assert weights == [k for k in b if not k.startswith("optim")]
    apart = sum(float((a[k] - b[k]).abs().sum()) for k in weights) / sum(a[k].numel() for k in weights)
    return apart < tolerance * CONFIG.learning_rate * CONFIG.max_train_steps * 100


def test_a_step_is_down_the_mean_of_its_parts(tmp_path):
    config = dataclasses.replace(CONFIG, max_train_steps=1, weight_decay=0.0, max_grad_norm=1e9)
    seen = []

    def loss(model, emas, g):
        x = torch.randn(2, generator=g)
        seen.append(x)
        return (model.w * x).sum()

    line = Line()
    train(line, loss, config, tmp_path, {}, devices=Devices(accumulation=3))
    assert len(seen) == 3
    assert torch.equal(seen[0], torch.randn(2, generator=step_generator(0, 0)))
    assert not torch.equal(seen[0], seen[1])
    mean = torch.stack(seen).mean(0)
    moments = kept(tmp_path)["optim.0.exp_avg"]
    assert torch.allclose(moments, 0.1 * mean, atol=1e-7), "Adam's first moment is a tenth of the gradient"
    row = (tmp_path / "curve.csv").read_text().splitlines()[1].split(",")
    assert row[:2] == ["1", "6"], "one step, three batches of two"


def test_dropout_is_a_parts_own(tmp_path):
    config, seen = dataclasses.replace(CONFIG, max_train_steps=2), []

    def loss(model, emas, g):
        seen.append(torch.nn.functional.dropout(torch.ones(64), 0.5))
        return model.w.sum() ** 2

    train(Line(), loss, config, tmp_path / "one", {}, devices=Devices(accumulation=2))
    assert len({tuple(x.tolist()) for x in seen}) == 4, "no two parts or steps have the same mask"
    torch.manual_seed(step_generator(CONFIG.seed, 1, 1).initial_seed())
    assert torch.equal(seen[3], torch.nn.functional.dropout(torch.ones(64), 0.5)), "step and part alone say which"


def test_a_number_of_parts_belongs_to_a_training(tmp_path):
    plain_training(tmp_path, Devices(accumulation=2), stop_at=2)
    with pytest.raises(TrainingError, match="parts"):
        plain_training(tmp_path, Devices(accumulation=3))


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    script = Path(__file__).with_name("two_processes.py")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    cpu = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path)], stderr=subprocess.PIPE, text=True,
            env={**os.environ, **here, **cpu, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        for process in both:
            _, errors = process.communicate(timeout=400)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in both:
            process.kill()
            process.communicate()
    alone = Devices(accumulation=4)
    plain_training(tmp_path / "plain", alone)
    matching_training(tmp_path / "matching", alone)
    start = tmp_path / "start"
    plain_training(start, alone, stop_at=0)
    assert not close(kept(start), kept(tmp_path / "plain")), "what is compared has moved"
    for name in ("copies", "sharded"):
        assert close(kept(tmp_path / "plain"), kept(tmp_path / f"{name}-plain"))
        exported = load_file(tmp_path / f"{name}-exported" / "diffusion_pytorch_model.safetensors")
        saved = kept(tmp_path / f"{name}-plain")
        assert all(torch.equal(v, saved[f"ema.use.{k}"]) for k, v in exported.items())
        assert close(kept(tmp_path / "matching"), kept(tmp_path / f"{name}-matching"))
        plain_training(tmp_path / f"{name}-half", alone)
        assert close(kept(tmp_path / "plain"), kept(tmp_path / f"{name}-half")), "one process went on with two's work"
    errors = [(tmp_path / f"error-{rank}.txt").read_text() for rank in (0, 1)]
    assert all("the loss became nan at step 0" in e for e in errors), "no process is left waiting for another"


def test_refused():
    with pytest.raises(SettingError, match="gradient_accumulation_steps=0"):
        Devices(accumulation=0)
    with pytest.raises(SettingError, match="one alone"):
        Devices(sharded=True)
    with pytest.raises(SettingError, match="mixed_precision='fp8'"):
        Devices.here(mixed_precision="fp8")
    with pytest.raises(SettingError, match="report_to='fax'"):
        Devices.here(report_to=["fax"])
