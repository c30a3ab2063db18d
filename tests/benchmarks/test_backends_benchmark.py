"""The benchmark of backends: sides take turns, ratios are of the same repeat, memory is a process's own."""

import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import backends

ROOT = Path(__file__).parents[2]


def test_sides_take_turns_and_ratios_are_eagers_seconds_over_the_others(monkeypatch):
    took = {"eager": iter([4.0, 6.0, 8.0]), "fast": iter([2.0, 2.0, 2.0])}
    order = []

    def timed(part):
        order.append(part)
        return next(took[part]), part.upper()

    monkeypatch.setattr(backends, "timed", timed)
    found, said = backends.compared({"eager": "eager", "fast": "fast"}, 3)
    assert order == ["eager", "fast", "fast", "eager", "eager", "fast"]
    assert found["times_eager"] == {"fast": {"median": 3.0, "min": 2.0, "max": 4.0}}
    assert found["seconds"]["eager"] == {"median": 6.0, "min": 4.0, "max": 8.0}
    assert said == {"eager": "EAGER", "fast": "FAST"}


def test_parts_are_the_same_for_every_backend(pipe):
    a, b = (backends.parts_of(pipe, ["red apple, noto"]) for _ in range(2))
    assert list(a) == ["text encoder", "student step", "teacher step", "decode", "oracle"]
    assert torch.equal(a["oracle"](), b["oracle"]())
    assert a["oracle"]().shape == (pipe.settings.batch_size,)


def test_memory_is_seen_to_grow():
    # A process of its own: what else is freed in this one while it runs would count, too.
    code = (
        "import torch; from benchmarks import backends as b; before = b.resident(); held = torch.ones(64 * 2**18);"
        " print(b.resident() - before, b.peak() - b.resident())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    grown, below_peak = map(int, said.split())
    assert 0.9 * 2**26 < grown < 1.5 * 2**26
    assert below_peak >= -(2**20)
