"""The benchmark of servers: latencies of an open loop, the highest rate by bisection, and pictures that are the same."""

import threading
import time

import numpy as np
import pytest

from benchmarks import serving


class Clockwork:
    """A server on a clock of its own: one request at a time, each `seconds` long; time passes only when it is asked to."""

    def __init__(self, monkeypatch, seconds):
        self.now, self.free, self.seconds = 0.0, 0.0, seconds
        monkeypatch.setattr(serving.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(serving.time, "sleep", self.sleep)

    def sleep(self, seconds):
        self.now += seconds

    def submit(self, index, done):
        kept = self.now
        # A trial begins when the last one is over.
        self.free = max(self.free if index else 0.0, self.now) + self.seconds
        self.now = self.free
        done(None)
        self.now = kept

    def report(self):
        return {"said": 1}


def test_latencies_run_from_when_a_request_was_due(monkeypatch):
    server = Clockwork(monkeypatch, 1.0)
    # Due at 1, 1.5, 2: served until 2, 3, 4.
    found = serving.trial(server, np.array([2.0, 1.0, 1.0]), 2.0)
    assert found.percentile == pytest.approx(np.percentile([1.0, 1.5, 2.0], 95))
    assert found.sustained == pytest.approx(3 / 3.0), "from the first arrival to the last picture"
    at_once = serving.trial(Clockwork(monkeypatch, 0.5), np.ones(4), np.inf)
    assert at_once.sustained == pytest.approx(2.0)


def test_the_highest_rate_is_the_one_where_a_queue_of_evenly_spaced_requests_begins(monkeypatch):
    server = Clockwork(monkeypatch, 0.25)
    # Evenly spaced arrivals never wait below 4 a second, and wait for ever longer above: within .3 s up to just over 4.
    found = serving.highest(server, lambda rate: np.ones(200), 0.3, 8)
    assert found["capacity"] == pytest.approx(4.0)
    assert 3.9 < found["sustained"] <= 4
    assert found["percentile"] <= 0.3
    assert found["said"] == 1
    assert len(found["trials"]) == 8
    assert serving.highest(Clockwork(monkeypatch, 0.25), lambda rate: np.ones(20), 0.1, 3)["sustained"] == 0, "never within"


def test_one_thread_takes_what_waits_together_and_in_order():
    gate, seen, done = threading.Event(), [], []

    def paint(indices):
        gate.wait(5)
        seen.append(list(indices))
        if 4 in indices:
            raise ValueError("four")

    server = serving.OneThread(paint, 3)
    server.submit(0, done.append)
    time.sleep(0.2)
    for i in range(1, 6):
        server.submit(i, done.append)
    gate.set()
    server.close()
    assert seen == [[0], [1, 2, 3], [4, 5]]
    assert done[:4] == [None] * 4
    assert [str(e) for e in done[4:]] == ["four", "four"], "a call that fails fails its pictures, and the next go on"
    assert server.report() == {"requests_a_call": 2.0}


def test_a_failed_picture_ends_the_benchmark():
    class Failing:
        def submit(self, index, done):
            done(ValueError("no picture") if index == 1 else None)

    with pytest.raises(ValueError, match="no picture"):
        serving.trial(Failing(), np.zeros(3), 1.0)


@pytest.mark.slow
def test_all_sides_paint_the_bundled_card(capsys, monkeypatch):
    few = ["--seconds", "1", "--least", "2", "--at-once", "3", "--probes", "1", "--repeats", "1", "--batch-size", "2"]
    monkeypatch.setattr("sys.argv", ["serving", *few, "--objective", "60"])
    serving.main()
    said = capsys.readouterr()
    assert "engine over teacher: " in said.out
    assert "repeat 1, calls: " in said.err
