"""A web server on this machine that serves bytes well or badly, as the first folder says."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar

S = TypeVar("S", bound=ThreadingHTTPServer)


class Server(ThreadingHTTPServer):
    """Serves ``contents`` by file name; ``asked`` lists (path, Range) of every request.

    /good honours Range, /whole ignores it, /dated honours it and says that the file is of 2099,
    /cut stops in the middle of what is left, /cutwhole in the middle of everything, /other sends
    other bytes, /page a web page, /moved leads to /good, /gone answers 404, /stuck sends a byte and
    waits, /slow sends one every 0.1 s, /head one of the answer's head every 0.1 s, /drip sends one
    and closes, /lying a web page that calls itself a tar, /virus leads to /page, /short says that
    the file is shorter, /untold does not say how large it is, /aside sends a part that begins a
    byte before the one that was asked for.
    """

    daemon_threads = True

    def __init__(self, contents: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.contents, self.asked = contents, list[tuple[str, str]]()
        self.address = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *args: object) -> None:
        """Say nothing of a client that went away."""


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:  # noqa: N802
        _, manner, name = self.path.split("/", 2)
        asked = self.headers.get("Range", "")
        self.server.asked.append((self.path, asked))
        content = self.server.contents.get(name)
        if manner in ("moved", "virus"):
            self.send_response(302)
            to = "good" if manner == "moved" else "page"
            self.send_header("Location", f"/{to}/{name}")
            self.end_headers()
            return
        if manner == "head":
            for byte in b"HTTP/1.0 200 OK":
                self.wfile.write(bytes([byte]))
                time.sleep(0.1)
            return
        if manner == "gone" or content is None:
            self.send_error(404)
            return
        if manner == "page":
            self._answer(200, b"<!DOCTYPE html><title>Virus scan warning</title>", "text/html")
            return
        if manner == "lying":
            content = b"<!DOCTYPE html>".ljust(len(content))
        if manner == "other":
            content = bytes(len(content))
        if manner == "short":
            content = content[:-1]
        start = int(asked[6:-1]) if asked and manner not in ("whole", "cutwhole") else 0
        if manner == "aside":
            start = max(start - 1, 0)
        left = content[start:]
        stop = {
            "cut": len(left) // 2,
            "cutwhole": len(left) // 2,
            "slow": 1,
            "stuck": 1,
            "drip": 1,
        }.get(manner, len(left))
        code = 206 if start else 200
        part = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._answer(code, left, "application/x-tar", stop, part)
        if manner == "stuck":
            time.sleep(1)
        for byte in left[1:15] if manner == "slow" else b"":
            time.sleep(0.1)
            self.wfile.write(bytes([byte]))

    def _answer(self, code: int, body: bytes, kind: str, stop: int = -1, part: str = "") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        if "/untold/" not in self.path:
            self.send_header("Content-Length", str(len(body)))
        if "/dated/" in self.path:
            self.send_header("Last-Modified", "Thu, 01 Jan 2099 00:00:00 GMT")
        if code == 206:
            self.send_header("Content-Range", part)
        self.end_headers()
        self.wfile.write(body[: len(body) if stop < 0 else stop])
        self.wfile.flush()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serving(contents: dict[str, bytes]) -> Iterator[Server]:
    """A server in a thread, as long as the block runs."""
    with in_a_thread(Server(contents)) as server:
        yield server


@contextmanager
def in_a_thread(server: S) -> Iterator[S]:
    """The server answers, as long as the block runs."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
