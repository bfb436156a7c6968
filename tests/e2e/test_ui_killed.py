"""`uotft ui` is killed or interrupted while it starts: nothing that it started goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.ports import free_port
from support.projects import tiny_params, write_params
from support.watched_commands import inside, running, start, wait, wait_for
from uotft.tracking import store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]
MLFLOW, SERVER = "uotft.tracking.mlflow_command", "uvicorn"  # words of their command lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with MLflow's database, which takes long to make."""
    root = tmp_path_factory.mktemp("ui")
    write_params(root, tiny_params())
    store.make_store(root)
    return root


@pytest.fixture
def started(folder: Path):  # noqa: ANN201
    """Starts `uotft ui` and returns once it has this process; kills what a test leaves."""
    commands = []

    def begin(program: str) -> subprocess.Popen[str]:
        commands.append(start(folder, "ui", "--port", str(free_port())))
        wait_for(commands[0], lambda: running(folder, program))
        return commands[0]

    yield begin
    for pid in inside(folder):
        os.kill(pid, signal.SIGKILL)
    commands[0].communicate()


@pytest.mark.parametrize("program", [MLFLOW, SERVER])
def test_killed(folder: Path, started: Callable, program: str) -> None:
    command = started(program)
    command.kill()
    command.wait()
    wait(lambda: not inside(folder), seconds=30)


def test_killed_while_its_server_does_nothing(folder: Path, started: Callable) -> None:
    """A busy machine, carried to extremes: the server does not get to any signal's handler."""
    command = started(SERVER)
    [server] = running(folder, SERVER)
    os.kill(server, signal.SIGSTOP)
    command.kill()
    command.wait()
    wait(lambda: not inside(folder), seconds=30)


def test_interrupted(folder: Path, started: Callable) -> None:
    command = started(MLFLOW)
    command.send_signal(signal.SIGINT)
    said, _ = command.communicate(timeout=60)
    assert not inside(folder)
    assert command.returncode == 0, said
    assert "Traceback" not in said
