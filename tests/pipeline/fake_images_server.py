"""A server on 127.0.0.1 with OpenAI's images endpoints that paints flat pictures, and fails as it is told to."""

import base64
import contextlib
import io
import json
import threading
import time
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image


def png(size, colour):
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


class Fake:
    """`script(path, fields, k) -> None` (paint), or `(status, headers, body)`; `k` counts the tries of that prompt."""

    def __init__(self, script=None, seconds=0.0):
        self.script, self.seconds = script, seconds
        self.seen, self.at_once, self.most, self.lock = [], 0, 0, threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_POST(self):
                with fake.lock:
                    fake.at_once += 1
                    fake.most = max(fake.most, fake.at_once)
                time.sleep(fake.seconds)
                # Before the answer: whoever has it may ask again before this thread goes on.
                with fake.lock:
                    fake.at_once -= 1
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    fake.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler):
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        kind = handler.headers["Content-Type"]
        if kind == "application/json":
            fields = json.loads(body)
        else:
            whole = BytesParser().parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
            fields = {p.get_param("name", header="content-disposition"): p for p in whole.get_payload()}
            fields = {
                k: p.get_payload(decode=True) if p.get_filename() else p.get_payload(decode=True).decode()
                for k, p in fields.items()
            }
        with self.lock:
            k = sum(f["prompt"] == fields["prompt"] for _, f, _ in self.seen)
            self.seen.append((handler.path, fields, dict(handler.headers)))
        said = self.script(handler.path, fields, k) if self.script is not None else None
        if said is None:
            size = tuple(map(int, fields["size"].split("x")))
            said = 200, {}, data(png(size, (int(fields["seed"]) % 256, 100, 250)))
        status, headers, answer = said
        if callable(answer):
            answer(handler)
            return
        handler.send_response(status)
        for name, value in {"Content-Length": len(answer), **headers}.items():
            handler.send_header(name, str(value))
        handler.end_headers()
        handler.wfile.write(answer)


def data(picture):
    return json.dumps({"created": 1, "data": [{"b64_json": base64.b64encode(picture).decode()}]}).encode()
