"""Batches on a Ray cluster of two workers: the bytes of one process, nothing lost, nothing twice, whoever dies."""

import os
import signal
import time
from functools import partial

import pytest
from tiny_ray import THREADS, TINY, digests, tiny_pipe

from allaprima.cascade.policy import ThresholdPolicy
from allaprima.cascade.request import GenerationRequest
from allaprima.core.errors import ModelError, SettingError
from allaprima.fleet.ray_batch import BatchWork, WorkerConfig, paint

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
HALF = ThresholdPolicy(0.5)


def requests(n, prompt=None):
    return [(GenerationRequest(prompt or f"{k % 20 / 20}", 1000 + k, index=k), f"note {k}") for k in range(n)]


def work(**more):
    make = partial(tiny_pipe, **more)
    return BatchWork(make, TINY, HALF, digests, tiny_pipe().fingerprints(), THREADS)


def alone(items):
    """What one process paints, in order; without the process's id."""
    notes = {r.index: note for r, note in items}
    pipe = tiny_pipe()
    made = [digests(r, notes[r.request.index])[:-1] for r in pipe.stream([r for r, _ in items], TINY, HALF)]
    return sorted(made, key=lambda row: row[1])


def ordered(made):
    return sorted((row[:-1] for row in made), key=lambda row: row[1])


def test_two_workers_paint_the_bytes_of_one_process(cluster):
    items = requests(50)
    made = list(paint(work(), items, WorkerConfig(2, chunk=7)))
    assert ordered(made) == alone(items)
    # Both, unless the second was still loading when all was done.
    assert 1 <= len({row[-1] for row in made}) <= 2
    assert os.getpid() not in {row[-1] for row in made}
    assert {row[4]["decision"] for row in made} == {"accept", "refine"}


def test_requests_are_read_as_workers_get_free(cluster):
    read = []

    def endless():
        for k in range(10**9):
            read.append(k)
            yield requests(1, "0.3")[0][0].__class__("0.3", k, index=k), ""

    stream = paint(work(), endless(), WorkerConfig(2, chunk=4))
    for n in range(1, 41):
        made = next(stream)
        assert len(read) <= n + 4 * (2 * 2 + 2), "at most two chunks a worker, one that is read and one that is handed out"
    stream.close()
    gone(made[-1])


def test_killed_workers_lose_nothing_and_a_deadly_request_costs_itself_only(cluster, tmp_path):
    items, made, killed = requests(60), [], None
    items[31] = (GenerationRequest("0.77", 5, index=31), "kills whoever comes first")
    items[47] = (GenerationRequest("0.66", 5, index=47), "kills always")
    for row in paint(work(marker=str(tmp_path / "was here"), wait=0.02), items, WorkerConfig(2, chunk=4)):
        if killed is None:
            killed = row[-1]
            os.kill(killed, signal.SIGKILL)
        made.append(row)
    rows = ordered(made)
    assert [row[1] for row in rows] == list(range(60)), "none lost, none twice"
    assert "workers died over it" in rows[47][4]["error"]
    assert rows[47][2] is None
    assert rows[:47] + rows[48:] == alone([item for item in items if item[0].index != 47])
    assert (tmp_path / "was here").exists()
    gone(killed)


def gone(pid):
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError(f"worker {pid} still runs")


def test_other_models_and_no_room_are_refused(cluster):
    with pytest.raises(ModelError, match=r"student on .* is 'other', here it is 'toy'"):
        list(paint(work(name="other"), requests(3), WorkerConfig(1)))
    with pytest.raises(SettingError, match="99 CPU"):
        list(paint(work(), requests(3), WorkerConfig(1, cpus=99)))
    assert list(paint(work(name="other"), [], WorkerConfig(1))) == []
