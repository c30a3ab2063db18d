"""Many annotators at once: no lost or double vote, and how long a vote takes.

    python -m benchmarks.study [--json] [--annotators 50] [--pairs 20] [--database URL]

A study of plain pictures is served by `allaprima study serve` in a process of its own; each annotator is a thread with its
own connection, asks for a pair, looks at it for a moment (half to one and a half times `--look`, drawn anew for each pair:
people don't vote in step), and votes; every fifth vote is sent twice at once. The
time of a vote runs from the request to its acknowledgement, which comes after the vote is on the disk. SQLite lies in a
temporary folder; `--database` is an empty Postgres database.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from allaprima.data.pictures import open_pictures
from allaprima.study.create import StudyPlan, create, open_study
from allaprima.study.design import Rules
from allaprima.study.known_pairs import Counts

ANSWERS = dict.fromkeys(("alignment", "quality", "aesthetics", "overall"), "left")


@dataclass
class Seen:
    """What the annotators saw; threads append to lists, which needs no lock."""

    seconds: list[float] = field(default_factory=list[float])
    acknowledged: list[str] = field(default_factory=list[str])
    faults: list[str] = field(default_factory=list[str])


def plain_study(folder: Path, pairs: int, votes: int, url: str | None) -> Path:
    """Return a study of one-coloured pictures."""
    for k, method in enumerate(("one", "other")):
        (folder / method).mkdir(parents=True)
        rows: list[str] = []
        for i in range(pairs):
            Image.new("RGB", (64, 64), (60 * k, i % 256, 90)).save(folder / method / f"{i}.png")
            rows.append(json.dumps({"prompt": f"thing {i}", "seed": 0, "image": f"{i}.png"}))
        (folder / method / "results.jsonl").write_text("\n".join(rows))
    sets = {m: open_pictures(folder / m) for m in ("one", "other")}
    create(folder / "study", sets, StudyPlan(rules=Rules(votes=votes), counts=Counts(0, 0, 0)), url)
    return folder / "study"


def annotate(address: str, token: str, seen: Seen, look: float, most: int) -> None:
    """One annotator, until there is nothing left or `most` votes are given."""
    connection = HTTPConnection(address, timeout=60)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    body = json.dumps({"answers": ANSWERS, "seconds": 1.0})
    draw = random.Random(token)

    def ask(method: str, path: str, with_body: bool, own: HTTPConnection) -> Any:
        own.request(method, path, body if with_body else None, headers)
        answer = own.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:200]!r}")
        return json.loads(text)

    def again(path: str) -> None:
        try:
            with contextlib.closing(HTTPConnection(address, timeout=60)) as own:
                ask("POST", path, True, own)
        except (OSError, RuntimeError, HTTPException) as e:
            seen.faults.append(str(e))

    try:
        for k in range(most):
            slot = ask("GET", "/api/next", False, connection)["slot"]
            if slot is None:
                return
            time.sleep(look * draw.uniform(0.5, 1.5))
            path = f"/api/slots/{slot['id']}/vote"
            twin = threading.Thread(target=again, args=(path,)) if k % 5 == 0 else None
            if twin is not None:
                twin.start()
            begun = time.perf_counter()
            ask("POST", path, True, connection)
            seen.seconds.append(time.perf_counter() - begun)
            seen.acknowledged.append(slot["id"])
            if twin is not None:
                twin.join()
    except (OSError, RuntimeError, HTTPException) as e:
        seen.faults.append(f"{type(e).__name__}: {e}")
    finally:
        connection.close()


def run(annotators: int, pairs: int, look: float, url: str | None) -> dict[str, Any]:
    """All annotators vote on all pairs; raises `AssertionError` for a lost or double vote."""
    with tempfile.TemporaryDirectory() as made:
        folder = plain_study(Path(made), pairs, annotators, url)
        store = open_study(folder, url)
        tokens, seen = store.invite(annotators), Seen()
        command = [sys.executable, "-m", "allaprima", "study", "serve", str(folder), "--port", "0"]
        with subprocess.Popen(
            [*command, *(["--database", url] if url else [])], stdout=subprocess.PIPE, text=True
        ) as server:
            try:
                assert server.stdout is not None
                address = re.sub(r"^http://|/$", "", server.stdout.readline().strip())
                threads = [threading.Thread(target=annotate, args=(address, t, seen, look, 10**6)) for t in tokens]
                begun = time.perf_counter()
                for t in threads:
                    t.start()
                for t in threads:
                    t.join()
                took = time.perf_counter() - begun
            finally:
                server.terminate()
        votes = store.votes()
        assert not seen.faults, seen.faults[:3]
        assert len({*seen.acknowledged}) == len(seen.acknowledged) == annotators * pairs
        assert len({(v.pair, v.annotator) for v in votes}) == len(votes) == annotators * pairs
        assert set(Counter(v.pair for v in votes).values()) == {annotators}
        dialect = store.database.engine.dialect.name
        store.close()
    q = np.quantile(seen.seconds, [0.5, 0.95, 0.99])
    return {
        "database": dialect, "annotators": annotators, "votes": len(votes), "lost": 0, "double": 0, "look_seconds": look,
        "seconds": round(took, 1), "p50_ms": round(1e3 * float(q[0]), 1), "p95_ms": round(1e3 * float(q[1]), 1),
        "p99_ms": round(1e3 * float(q[2]), 1),
    }  # fmt: skip


def main() -> None:
    """Return the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--look", type=float, default=4.0, help="seconds an annotator looks; people take longer")
    parser.add_argument("--database")
    given = parser.parse_args()
    found = run(given.annotators, given.pairs, given.look, given.database)
    print(json.dumps(found) if given.json else "\n".join(f"{k}: {v}" for k, v in found.items()))


if __name__ == "__main__":
    main()
