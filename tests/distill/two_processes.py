"""Run in two processes, set up as `accelerate launch` does: what `test_devices` compares with one process's trainings."""

import sys
from pathlib import Path

import torch
from devices_cases import matching_training, plain_training

from allaprima.distill.devices import Devices

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    for sharded in (False, True):
        name = "sharded" if sharded else "copies"
        devices = Devices.here(accumulation=2, sharded=sharded)
        assert devices.processes == 2
        _, use = plain_training(folder / f"{name}-plain", devices)
        whole = devices.gathered(use)
        if devices.main:
            whole.save_pretrained(folder / f"{name}-exported")
        matching_training(folder / f"{name}-matching", devices)
        # The first half only: the test goes on with it in a single process.
        plain_training(folder / f"{name}-half", devices, stop_at=2)
    try:
        Devices.here(accumulation=2).mean(torch.tensor(float("nan") if devices.rank else 1.0))
        plain_training(folder / "broken", Devices.here(accumulation=2), nan_on=1)
    except Exception as e:
        (folder / f"error-{devices.rank}.txt").write_text(str(e))
    torch.distributed.destroy_process_group()
