"""The benchmark of backends: sides take turns, ratios are of the same repeat, memory is a process's own."""

import torch

from benchmarks import backends


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
    before = backends.resident()
    held = torch.ones(64 * 2**18)
    grown = backends.resident() - before
    assert 0.9 * held.numel() * 4 < grown < 1.5 * held.numel() * 4
    assert backends.peak() >= backends.resident() - 2**20
