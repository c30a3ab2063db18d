"""A line to a server that can be cut: what a browser sees when the connection drops, not what a mock thinks it sees."""

import contextlib
import socket
import threading


class Line:
    """Hands bytes on between a browser and a server, but for votes while it is cut.

    Browsers themselves send a request again when a connection that they had used before ends under it, so one lost answer
    shows nothing: the line stays cut until it is mended.
    """

    def __init__(self, to):
        self.to, self.lost, self._cut = to, 0, False
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        """The next vote arrives, its answer doesn't; those after it don't arrive."""
        with self._lock:
            self.lost, self._cut = 0, True

    def mend(self):
        """Everything passes again."""
        with self._lock:
            self._cut = False

    def _fate(self, sent):
        if not (sent.startswith(b"POST ") and b"/vote " in sent.split(b"\r\n", 1)[0]):
            return None
        with self._lock:
            self.lost += self._cut
            return ("answer" if self.lost == 1 else "request") if self._cut else None

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listening.accept()[0],), daemon=True).start()

    def _serve(self, browser):
        with browser, socket.create_connection(self.to) as server, contextlib.suppress(OSError):
            lost = threading.Event()
            threading.Thread(target=self._answer, args=(server, browser, lost), daemon=True).start()
            while sent := browser.recv(2**16):
                fate = self._fate(sent)
                if fate == "request":
                    return
                if fate == "answer":
                    lost.set()
                server.sendall(sent)
            server.shutdown(socket.SHUT_WR)

    def _answer(self, server, browser, lost):
        with contextlib.suppress(OSError):
            while answer := server.recv(2**16):
                if lost.is_set():
                    break
                browser.sendall(answer)
        with contextlib.suppress(OSError):
            browser.shutdown(socket.SHUT_RDWR)

    def close(self):
        """No new connections."""
        self._listening.close()
