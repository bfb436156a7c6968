"""The tracking page, served for real: by `uotft ui`, and by a bare `mlflow ui` in the root."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

import pytest

from conftest import call, users_environment
from folders import pictures
from pages import free_port, served

SEARCH = "/api/2.0/mlflow/experiments/search"


def ask(port: int, **headers: str) -> tuple[int, bytes]:
    """The answer to a search for experiments."""
    line = HTTPConnection(f"127.0.0.1:{port}", timeout=20)
    headers |= {"Content-Type": "application/json"}
    line.request("POST", SEARCH, json.dumps({"max_results": 50}), headers)
    answer = line.getresponse()
    status, content = answer.status, answer.read()
    line.close()
    return status, content


def experiments(port: int) -> set[str]:
    """Names of the experiments that the server at ``port`` shows."""
    status, content = ask(port)
    assert status == 200, content
    return {e["name"] for e in json.loads(content)["experiments"]}


def children(leader: int) -> list[int]:
    """The processes that descend from ``leader``, which may be gone."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(text.rpartition(")")[2].split()[1])
    found, before = {leader}, set()
    while found != before:
        before = found
        found = found | {process for process, parent in parents.items() if parent in found}
    return sorted(found - {leader})


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_the_page_is_there_when_it_is_said_and_ctrl_c_ends_it_all(project: Path) -> None:
    with served(project) as (process, port):
        assert {"digits", "glyphs", "reports"} <= experiments(port)

        # another site's page in this machine's browser can neither read nor write
        assert ask(port, Host="evil.example")[0] == 403
        assert ask(port, Origin="http://evil.example")[0] == 403

        second = call("uotft", "ui", "--port", str(port), cwd=project)
        assert second.returncode == 2
        assert f"--port {port} on --host 127.0.0.1: Address already in use" in second.stderr

        started = children(process.pid)
        assert len(started) >= 2, "MLflow and its server"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "Traceback" not in said
        assert not [child for child in started if Path(f"/proc/{child}").exists()]


@pytest.mark.slow
def test_other_machines_are_let_in_on_demand_alone(tmp_path: Path) -> None:
    """Outside a clone, before the first run, and a page that is of another origin to MLflow."""
    old, new = (str(pictures(tmp_path / name, 2, 3)) for name in ("old", "new"))
    done = call("uotft", "init", "--source", old, "--target", new, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    name = socket.gethostname()
    with served(tmp_path, "--host", "0.0.0.0") as (process, port):
        place = f"{name}:{port}"
        assert ask(port, Host=place, Origin=f"http://{place}")[0] == 200
        assert ask(port, Host=place, Origin="http://evil.example")[0] == 403
        assert ask(port, Host="evil.example")[0] == 403
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "--host 0.0.0.0: whoever reaches it may read, change and delete runs" in said


def test_a_store_that_is_a_server_is_not_served_again(project: Path) -> None:
    done = call("uotft", "ui", cwd=project, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 2
    assert "http://127.0.0.1:9 is a server already" in done.stderr


@pytest.mark.slow
def test_a_bare_mlflow_ui_shows_the_experiments(project: Path) -> None:
    port = free_port()
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(
        [str(Path(sys.executable).with_name("mlflow")), "ui", "--port", str(port)],
        cwd=project,
        env=users_environment() | quiet,
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
