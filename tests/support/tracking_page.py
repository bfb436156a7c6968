"""`uotft ui`, started as a user starts it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from threading import Timer

from support.commands import users_environment
from support.ports import free_port

SEARCH = "/api/2.0/mlflow/experiments/search"


@contextmanager
def served(
    project: Path, *arguments: str, most: float = 150
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`uotft ui` on a free port, once it has said that it answers; the process and the port."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "uotft", "ui", "--port", str(port), *arguments],
        cwd=project,
        env=users_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    late = Timer(most, process.kill)  # s
    late.start()
    try:
        assert process.stdout
        line = process.stdout.readline()
        late.cancel()  # it limits the start: later it would kill the command alone
        assert f":{port} (Ctrl-C stops it)" in line, line + process.communicate()[1]
        yield process, port
    finally:
        late.cancel()
        process.terminate()
        process.communicate(timeout=60)


def ask(port: int, **headers: str) -> tuple[int, bytes]:
    """The answer to a search for experiments."""
    line = HTTPConnection(f"127.0.0.1:{port}", timeout=60)
    headers |= {"Content-Type": "application/json"}
    line.request("POST", SEARCH, json.dumps({"max_results": 50}), headers)
    answer = line.getresponse()
    status, content = answer.status, answer.read()
    line.close()
    return status, content
