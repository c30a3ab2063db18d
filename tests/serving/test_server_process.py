"""Servers as processes of their own: signals, and what becomes of accepted requests."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from PIL import Image
from served import until

HERE = Path(__file__).parent
TEACHER = {"prompt": "an owl", "adaptive": {"threshold": 2.0}}
pytestmark = pytest.mark.slow


@contextmanager
def process(*command):
    paths = os.pathsep.join([str(HERE), str(HERE.parent.parent), str(HERE.parent.parent / "src")])
    made = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    said = []
    threading.Thread(target=lambda: said.extend(made.stderr), daemon=True).start()
    try:
        address = made.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), said
        yield made, address, said
    finally:
        if made.poll() is None:
            made.kill()
        made.wait(60)
        made.stdout.close()
        made.stderr.close()


def request(address, body):
    """Status, error's code, and Retry-After."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/v1/images/generations", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, len(json.load(answer)["data"]), None
    except urllib.error.HTTPError as e:
        with e:
            return e.code, json.load(e)["error"]["code"], e.headers.get("Retry-After")


def health(address, place="ready"):
    try:
        with urllib.request.urlopen(f"{address}/{place}", timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as e:
        e.close()
        return e.code


def busy(address, pictures):
    """Wait until so many are accepted."""

    def there():
        with urllib.request.urlopen(f"{address}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        return f"\nallaprima_engine_accepted {float(pictures)}\n" in text

    until(there)


def test_accepted_requests_are_finished():
    with process(str(HERE / "toy_server.py"), "0.2", "60") as (server, address, said), ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(request, address, {**TEACHER, "n": 3}) for _ in range(6)]
        busy(address, 18)
        server.send_signal(signal.SIGTERM)
        until(lambda: health(address) == 503)
        status, code, wait = request(address, TEACHER)
        assert (status, code) == (503, "draining")
        assert int(wait) >= 1
        assert server.poll() is None
        assert [a.result()[:2] for a in asked] == [(200, 3)] * 6
        assert server.wait(60) == 0, said
        assert server.stdout.read() == "ended\n"


def test_what_is_not_finished_in_time_is_handed_back():
    with process(str(HERE / "toy_server.py"), "0.3", "0.2") as (server, address, said), ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(request, address, {**TEACHER, "n": 2}) for _ in range(6)]
        busy(address, 12)
        server.send_signal(signal.SIGTERM)
        answers = [a.result() for a in asked]
        assert {(s, c) for s, c, _ in answers} <= {(200, 2), (503, "handed_back")}
        back = [int(wait) for s, _, wait in answers if s == 503]
        assert back
        assert min(back) >= 1
        assert server.wait(60) == 0, said


def test_a_second_signal_hurries():
    with process(str(HERE / "toy_server.py"), "0.5", "600") as (server, address, said), ThreadPoolExecutor(2) as pool:
        asked = pool.submit(request, address, {**TEACHER, "n": 8})
        busy(address, 8)
        server.send_signal(signal.SIGINT)
        until(lambda: health(address) == 503)
        server.send_signal(signal.SIGINT)
        assert asked.result()[0] == 503
        assert server.wait(60) == 0, said


def test_the_command_is_ready_soon_and_ends_well(tmp_path):
    from allaprima.pipeline import AdaptivePipeline

    with process("-m", "allaprima", "serve", "--port", "0", "--batch-size", "1") as (server, address, said):
        # Seconds of its own: on a machine with other work the clock on the wall tells of that work.
        times = psutil.Process(server.pid).cpu_times()
        assert times.user + times.system < 15
        root = address.removesuffix("/v1")
        assert address.endswith("/v1")
        body = {"prompt": "red apple, noto", "seed": 5, "adaptive": {"mode": "student-only"}}
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{address}/images/generations", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            (picture,) = json.load(answer)["data"]
        assert picture["adaptive"]["steps"] == AdaptivePipeline.from_card("emoji").settings.student_steps
        assert health(root, "health") == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0, said
        assert any("stopped: 1 painted" in line for line in said)


HOSTILE = [
    {"prompt": "x" * 900_000}, {"prompt": "x", "n": 10**9}, {"prompt": "x", "n": 10**9, "size": "16384x16384"},
    {"prompt": "x", "size": "16384x16384"}, {"prompt": "x", "num_inference_steps": 10**9}, {"prompt": ["x"] * 20_000},
]  # fmt: skip


def test_memory_stays_where_it_was_whatever_is_asked():
    from test_refusals import image_bytes, png_header

    with process(str(HERE / "toy_server.py"), "0.0", "5") as (server, address, _), ThreadPoolExecutor(8) as pool:
        assert request(address, TEACHER)[0] == 200
        one = psutil.Process(server.pid)
        before = one.memory_info().rss
        peaks = []
        done = threading.Event()

        def stream():
            while not done.wait(0.002):
                with suppress(psutil.NoSuchProcess):
                    peaks.append(one.memory_info().rss)

        watching = threading.Thread(target=stream)
        watching.start()
        answers = list(pool.map(lambda k: request(address, HOSTILE[k % len(HOSTILE)]), range(120)))
        bomb = upload(png_header(16_000, 16_000))
        answers += list(pool.map(lambda _: post(address, *bomb), range(40)))
        answers += list(pool.map(lambda _: flood(address, 200 * 2**20), range(4)))
        # A picture within the cap, which takes a hundred times the room of its file.
        large = upload(image_bytes("PNG", Image.new("RGB", (4000, 4000), (1, 2, 3))))
        mild = max(peaks)
        taken = list(pool.map(lambda _: post(address, *large), range(8)))
        done.set()
        watching.join()
        assert set(taken) == {(200,)}
        assert all(400 <= status < 500 for status, *_ in answers), {a for a in answers if not 400 <= a[0] < 500}
        assert mild - before < 64 * 2**20
        assert max(peaks) - before < 400 * 2**20
        assert request(address, TEACHER)[0] == 200


def test_memory_stays_where_it_was_over_six_hundred_pictures():
    with process(str(HERE / "toy_server.py"), "0.0", "5") as (server, address, _), ThreadPoolExecutor(8) as pool:

        def paint(n):
            assert {a[0] for a in pool.map(lambda k: request(address, {**TEACHER, "seed": k}), range(n))} == {200}
            return psutil.Process(server.pid).memory_info().rss

        before = paint(100)
        assert paint(600) - before < 16 * 2**20


def upload(picture):
    """Content type and body of an edit."""
    line = "a-line-between"
    fields = {"prompt": "0.5", "adaptive[threshold]": "0"}
    parts = [f'--{line}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    parts.append(f'--{line}\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\n')
    head = "".join([*parts, "Content-Type: image/png\r\n\r\n"])
    return f"multipart/form-data; boundary={line}", head.encode() + picture + f"\r\n--{line}--\r\n".encode()


def post(address, kind, data):
    request = urllib.request.Request(f"{address}/v1/images/edits", data, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return (answer.status,)
    except urllib.error.HTTPError as e:
        with e:
            return e.code, json.load(e)["error"]["code"]


def flood(address, size):
    """A chunked body of this size, of which nobody said how long it is; stops when the server answers."""
    import socket

    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as sock:
        head = "POST /v1/images/edits HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
        kind, first = upload(b"")
        sock.sendall(f"{head}Content-Type: {kind}\r\n\r\n".encode())
        try:
            data = first[:200]
            for _ in range(size // 2**16):
                sock.sendall(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                data = b"\0" * 2**16
        except OSError:
            pass
        try:
            said = sock.recv(4096)
        except OSError:
            return 413, "closed"
    return (int(said.split()[1]),) if said else (413, "closed")
