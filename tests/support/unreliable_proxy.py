"""A proxy in front of a server on this machine: open, shut, slow, broken, or losing answers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from support.commands import users_environment
from support.download_server import in_a_thread
from support.ports import free_port

MANNERS = ("lost", "hang", "broken", "shut", "slow")
PATIENCE_S = 150
OURS = ("host", "transfer-encoding", "content-length", "connection")


class Proxy(ThreadingHTTPServer):
    """Passes requests on to ``port``, in its ``manner``.

    lost: the server answers and nobody hears it; hang: never an answer, until the proxy closes;
    broken: 500; shut: the connection is cut; slow: a second more; open: as it is, and like lost
    from the request number ``last`` on.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port, self.manner, self.asked, self.last = port, "open", 0, sys.maxsize
        self.released = threading.Event()
        self.address = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *args: object) -> None:
        """Say nothing of a client that went away."""


class _Handler(BaseHTTPRequestHandler):
    server: Proxy

    def _any(self) -> None:
        self.server.asked += 1
        manner = self.server.manner if self.server.asked < self.server.last else "lost"
        body = self._body()
        if manner == "hang":
            self.server.released.wait(PATIENCE_S)
        if manner in ("hang", "shut"):
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if manner == "broken":
            self.send_error(500)
            return
        if manner == "slow":
            time.sleep(1)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in OURS}
        with closing(HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE_S)) as line:
            line.request(self.command, self.path, body, headers)
            answer = line.getresponse()
            content = answer.read()
        if manner == "lost":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(answer.status)
        for name in ("Content-Type", "Content-Disposition"):
            if value := answer.headers.get(name):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any  # noqa: N815

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def proxy(port: int) -> Iterator[Proxy]:
    """A proxy in a thread, as long as the block runs."""
    with in_a_thread(Proxy(port)) as made:
        try:
            yield made
        finally:
            made.released.set()


@contextmanager
def tracking_server(
    folder: Path, command: str = "server", *more: str, **environment: str
) -> Iterator[int]:
    """A real MLflow server, with the store of a folder if the environment names none; the port."""
    port = free_port()
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    words = [command, "--workers", "1", *more, "--port", str(port)]  # of two, the last one counts
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words],
        cwd=folder,
        env=users_environment() | quiet | environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait(server, port)
        yield port
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # it would wait for whoever hangs
        server.wait(60)


def _wait(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        assert server.poll() is None, "the tracking server ended"
        assert time.monotonic() < deadline, "the tracking server does not answer"
        line = HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            line.request("GET", "/health")
            if line.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.5)
        finally:
            line.close()
