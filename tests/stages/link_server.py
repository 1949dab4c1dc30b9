"""A server on loopback with the links that a list from the web holds: good, dead, slow, moved, and no pictures."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .webdataset_fixture import jpeg

PAGE = b"<!doctype html><html><body>this picture is no longer here</body></html>"


class LinkServer(ThreadingHTTPServer):
    """Answers by the first word of the path; `asked` counts the requests of each path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: Counter[str] = Counter()
        self.gate = threading.Event()
        """Links of /gated/ answer once this is set."""
        self.over = threading.Event()

    def url(self, path: str) -> str:
        """The link to a path."""
        return f"http://127.0.0.1:{self.server_port}/{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed, or lost patience, is no error here."""


class _Handler(BaseHTTPRequestHandler):
    server: LinkServer

    def do_GET(self) -> None:
        self.server.asked[self.path.lstrip("/")] += 1
        word, _, rest = self.path.lstrip("/").partition("/")
        number = int("0" + "".join(filter(str.isdigit, rest)))
        whole = jpeg(number)
        if word == "slow":
            self.server.over.wait(60)
        if word == "gated":
            while not self.server.gate.is_set() and not self.server.over.is_set():
                time.sleep(0.02)
        if word in ("good", "gated"):
            self._send(200, whole)
        elif word == "large":
            self._send(200, jpeg(number, 400, 300))
        elif word == "moved":
            self._send(301, b"", location=f"/good/{number}.jpg")
        elif word == "loop":
            self._send(302, b"", location=self.path)
        elif word == "page":
            self._send(200, PAGE, kind="text/html")
        elif word == "cut":  # a file that is damaged where it lies
            self._send(200, whole[: len(whole) // 2])
        elif word == "half":  # the connection ends in the middle
            self._send(200, whole[: len(whole) // 2], length=len(whole))
            self.close_connection = True
        elif word.isdecimal():
            self._send(int(word), b"")

    def _send(
        self, status: int, body: bytes, location: str = "", kind: str = "image/jpeg", length: int | None = None
    ) -> None:
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[LinkServer]:
    """A server that is at work inside the block."""
    with LinkServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()
