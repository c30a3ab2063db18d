"""A server that is killed in the middle: every acknowledged vote is there, and it goes on."""

import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from allaprima.study.create import open_study
from benchmarks.study import Seen, annotate, plain_study, run


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
def test_every_acknowledged_vote_survives_a_kill(tmp_path, database):
    folder = plain_study(tmp_path, 40, 8, database)
    store = open_study(folder, database)
    tokens, seen = store.invite(8), Seen()
    before = 0
    for killed in (True, False):
        server = subprocess.Popen(
            [sys.executable, "-m", "allaprima", "study", "serve", str(folder), "--port", "0"],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            address = re.sub(r"^http://|/$", "", server.stdout.readline().strip())
            threads = [threading.Thread(target=annotate, args=(address, t, seen, 0.0, 10**6)) for t in tokens]
            for t in threads:
                t.start()
            deadline = time.monotonic() + 120
            while killed and len(seen.acknowledged) < 60 and time.monotonic() < deadline:
                time.sleep(0.005)
            if killed:
                server.send_signal(signal.SIGKILL)
            for t in threads:
                t.join()
        finally:
            server.kill()
            server.wait()
            server.stdout.close()
        votes = store.votes()
        assert len({(v.pair, v.annotator) for v in votes}) == len(votes) >= len({*seen.acknowledged}) > before
        from sqlalchemy import select

        from allaprima.study.store.tables import SlotRow

        with store.database.reading() as s:
            done = {*s.scalars(select(SlotRow.public).where(SlotRow.done == 1))}
        assert {*seen.acknowledged} <= done and len(done) == len(votes)
        if killed:
            assert len(votes) < 320
        before = len({*seen.acknowledged})
    assert len(votes) == 320
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
def test_many_annotators_lose_and_double_nothing(database):
    found = run(annotators=12, pairs=6, look=0.05, url=database)
    assert found["votes"] == 72
