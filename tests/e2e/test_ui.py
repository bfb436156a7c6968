"""The tracking page, served for real: by `uotft ui`, and by a bare `mlflow ui` in the root."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from support.commands import answer, call
from support.open_ports import descendants
from support.tracking_page import ask, served
from support.unreliable_proxy import tracking_server


def experiments(port: int) -> set[str]:
    """Names of the experiments that the server at ``port`` shows."""
    status, content = ask(port)
    assert status == 200, content
    return {e["name"] for e in json.loads(content)["experiments"]}


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

        started = descendants(process.pid)
        assert len(started) >= 2, "MLflow and its server"
        lines = [Path(f"/proc/{each}/cmdline").read_text() for each in started]
        assert not [line for line in lines if "mlflow.db" in line], "ps shows it to everyone"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "Traceback" not in said
        assert not [child for child in started if Path(f"/proc/{child}").exists()]


def test_a_store_that_is_a_server_is_not_served_again(project: Path) -> None:
    done = answer("uotft", "ui", cwd=project, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 2
    assert "http://127.0.0.1:9 is already a server" in done.stderr


@pytest.mark.slow
def test_a_bare_mlflow_ui_shows_the_experiments(project: Path) -> None:
    with tracking_server(project, "ui") as port:
        assert {"digits", "glyphs", "reports"} <= experiments(port)


def test_doctor(project: Path) -> None:
    done = call("uotft", "doctor", cwd=project)
    assert done.returncode == 0, done.stdout
    for line in ("ok  torch", "ok  gpu", "ok  data digits", "ok  pretrained", "ok  strategies"):
        assert line in done.stdout
    assert "-- " not in done.stdout


def test_doctor_helps_outside_a_project_too(tmp_path: Path) -> None:
    done = answer("uotft", "doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "ok  torch" in done.stdout
    assert "ok  strategies" in done.stdout
    assert "ok  project        none in this folder: `uotft init` or" in done.stdout


def test_doctor_names_the_store_that_is_used(tiny: Path) -> None:
    done = answer("uotft", "doctor", cwd=tiny, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert "ok  runs           in the store of MLFLOW_TRACKING_URI" in done.stdout
    assert "mlflow.db" not in done.stdout


def test_doctor_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("source: [")
    done = answer("uotft", "doctor", cwd=tmp_path)
    assert done.returncode == 1
    assert "--  params.yaml" in done.stdout
