"""The tracking page, served for real: by `uotft ui`, and by a bare `mlflow ui` in the root."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from conftest import call


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def experiments(port: int) -> set[str]:
    """Names of the experiments that the server at ``port`` shows."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search",
        data=json.dumps({"max_results": 50}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return {e["name"] for e in json.load(answer)["experiments"]}


@pytest.mark.parametrize("program", ["uotft", "mlflow"])
def test_the_page_shows_the_experiments(project: Path, program: str) -> None:
    port = free_port()
    command = [str(Path(sys.executable).with_name(program)), "ui", "--port", str(port)]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(
        command,
        cwd=project,
        env={**os.environ, **quiet},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        found, deadline = None, time.monotonic() + 150
        while found is None:
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not answer"
            try:
                found = experiments(port)
            except OSError:
                time.sleep(1)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as page:
            assert b"MLflow" in page.read()
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)
    assert {"digits", "glyphs", "reports"} <= found


def test_doctor(project: Path) -> None:
    done = call("uotft", "doctor", cwd=project)
    assert done.returncode == 0, done.stdout
    for line in ("ok  torch", "ok  gpu", "ok  data digits", "ok  pretrained", "ok  selectors"):
        assert line in done.stdout
    assert "-- " not in done.stdout


def test_doctor_says_what_is_missing(tmp_path: Path) -> None:
    done = call("uotft", "doctor", cwd=tmp_path)
    assert done.returncode == 1
    assert "--  params.yaml" in done.stdout
