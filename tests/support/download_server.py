"""A web server on this machine that serves bytes well or badly, as the first folder says."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar

S = TypeVar("S", bound=ThreadingHTTPServer)


class Server(ThreadingHTTPServer):
    """Serves ``contents`` by file name; ``asked`` lists (path, Range) of every request.

    A name may have folders, as in a mirror: /good/HOST/PATH. ``sent`` counts the bytes of answers'
    bodies, by name; ``connections`` counts connections, which stay open for HTTP/1.1 clients.
    ``tags`` has the ETag of a name, ``instead`` {name: manner in place of the address's}. ``left``
    is how many bytes may still be sent in all before every connection is cut; None: no limit.
    ``before`` is called with (name, Range) of each request before it is answered.

    /good honours Range, /whole ignores it, /dated honours it and says that the file is of 2099,
    /cut stops in the middle of what is left, /cutwhole in the middle of everything, /other sends
    other bytes, /page a web page, /moved leads to /good, /gone answers 404, /stuck sends a byte and
    waits, /slow sends one every 0.1 s, /head one of the answer's head every 0.1 s, /drip sends one
    and closes, /lying a web page that calls itself a tar, /virus leads to /page, /short says that
    the file is shorter, /untold does not say how large it is, /aside sends a part that begins a
    byte before the one that was asked for.
    """

    daemon_threads = True
    sent: Counter[str]
    tags: dict[str, str]
    instead: dict[str, str]
    left: int | None = None
    before: Callable[[str, str], object]
    connections = 0

    def __init__(self, contents: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.contents, self.asked = contents, list[tuple[str, str]]()
        self.sent, self.tags, self.instead = Counter(), {}, {}
        self.before = lambda name, asked: None
        self.address = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *args: object) -> None:
        """Say nothing of a client that went away."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two packets; the second would wait 40 ms

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_GET(self) -> None:  # noqa: N802
        _, manner, name = self.path.split("/", 2)
        self.name, manner = name, self.server.instead.get(name, manner)
        asked = self.headers.get("Range", "")
        self.server.asked.append((self.path, asked))
        self.server.before(name, asked)
        content = self.server.contents.get(name)
        if manner in ("moved", "virus"):
            self.send_response(302)
            to = "good" if manner == "moved" else "page"
            self.send_header("Location", f"/{to}/{name}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if manner == "head":
            for byte in b"HTTP/1.0 200 OK":
                self.wfile.write(bytes([byte]))
                time.sleep(0.1)
            self.close_connection = True
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
        heard = asked if manner not in ("whole", "cutwhole") else ""
        first, _, last = heard.removeprefix("bytes=").partition("-")
        start, end = int(first or 0), min(int(last or len(content)) + 1, len(content))
        if manner == "aside":
            start = max(start - 1, 0)
        left = content[start:end]
        stop = {
            "cut": len(left) // 2,
            "cutwhole": len(left) // 2,
            "slow": 1,
            "stuck": 1,
            "drip": 1,
        }.get(manner, len(left))
        code = 206 if start or last else 200
        part = f"bytes {start}-{end - 1}/{len(content)}"
        self._answer(code, left, "application/x-tar", stop, part)
        if manner == "stuck":
            time.sleep(1)
        self.close_connection |= stop < len(left)
        for byte in left[1:15] if manner == "slow" else b"":
            time.sleep(0.1)
            self.wfile.write(bytes([byte]))

    def _answer(self, code: int, body: bytes, kind: str, stop: int = -1, part: str = "") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        if "/untold/" not in self.path:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.close_connection = True
        if tag := self.server.tags.get(self.name):
            self.send_header("ETag", tag)
        if "/dated/" in self.path:
            self.send_header("Last-Modified", "Thu, 01 Jan 2099 00:00:00 GMT")
        if code == 206:
            self.send_header("Content-Range", part)
        self.end_headers()
        body = body[: len(body) if stop < 0 else stop]
        if (allowed := self.server.left) is not None:
            self.close_connection |= allowed < len(body)
            body = body[:allowed]
            self.server.left = allowed - len(body)
        self.server.sent[self.name] += len(body)
        self.wfile.write(body)
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
