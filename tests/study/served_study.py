"""A study's server on a thread, and its invitations."""

import contextlib
import threading
import time

import uvicorn
from cut_line import Line

from allaprima.study.app.app import create_app
from allaprima.study.app.service import StudyService
from allaprima.study.create import open_study


@contextlib.contextmanager
def served(folder, annotators=3, url=None):
    store = open_study(folder, url)
    service = StudyService(folder, store)
    server = uvicorn.Server(uvicorn.Config(create_app(service), port=0, log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    service.url, service.line = f"http://127.0.0.1:{port}", Line(("127.0.0.1", port))
    service.tokens = store.invite(annotators)
    yield service
    service.line.close()
    server.should_exit = True
    thread.join(20)
    store.close()
