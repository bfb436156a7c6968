"""No tool that uotft starts or imports tells its makers of it, unless the user wants it to."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from support.commands import users_environment
from support.image_folders import pictures
from uotft.core import environment as outside

#: In every Python process: which other machine it asks for, into a file.
SPY = """
import os, socket
def _note(place):
    host = place[0] if isinstance(place, tuple) else place
    if host not in (None, "127.0.0.1", "::1", "localhost", socket.gethostname(), "") and (
        isinstance(host, (str, bytes))):
        with open(os.environ["SPIED"], "a") as file:
            file.write(f"{host}\\n")
_asked, _connect = socket.getaddrinfo, socket.socket.connect
def getaddrinfo(host, *rest, **words):
    _note(host)
    return _asked(host, *rest, **words)
def connect(self, place):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        _note(place)
    return _connect(self, place)
socket.getaddrinfo, socket.socket.connect = getaddrinfo, connect
"""
SWITCHES = [*outside.QUIET, "CI", "PYTEST_CURRENT_TEST", "PYTEST_VERSION", "GITHUB_ACTIONS"]


def asked(root: Path, command: list[str], **switches: str) -> set[str]:
    """The machines that a command asked for, in an environment without any switch but these."""
    folder = root.parent
    (folder / "spy").mkdir(exist_ok=True)
    (folder / "spy/sitecustomize.py").write_text(SPY)
    spied = folder / "asked.txt"
    spied.write_text("")
    environment = {k: v for k, v in users_environment().items() if k not in SWITCHES}
    path = f"{folder / 'spy'}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    environment |= {"PYTHONPATH": path, "SPIED": str(spied), **switches}
    done = subprocess.run(
        command,
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return set(spied.read_text().split())


@pytest.mark.slow
def test_nobody_is_told(fresh: Path, tmp_path: Path) -> None:
    """Accelerate and MLflow in a training, DVC where a project is made."""
    assert fresh == tmp_path / "project"
    uotft = [sys.executable, "-m", "uotft"]
    assert asked(fresh, [*uotft, "pretrain"]) == set()
    (tmp_path / "new").mkdir()
    sides = [str(pictures(tmp_path / name, 2, 3)) for name in ("old", "birds")]
    words = ["init", "--source", sides[0], "--target", sides[1]]
    assert asked(tmp_path / "new", [*uotft, *words]) == set()
    assert "check_update = false" in (tmp_path / "new/.dvc/config").read_text()
    local = (tmp_path / "new/.dvc/config.local").read_text()
    assert f"site_cache_dir = {tmp_path}/new/.dvc/tmp/uotft" in local
    assert stat.S_IMODE((tmp_path / "new/.dvc/tmp/uotft").stat().st_mode) & 0o007 == 0
    # the spy does see it where it is switched on
    on = {"MLFLOW_DISABLE_TELEMETRY": "false", "DO_NOT_TRACK": "false"}
    assert any("mlflow" in host for host in asked(fresh, [*uotft, "pretrain"], **on))


def test_what_a_user_has_set_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in (*outside.QUIET, outside.SITE_CACHE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    outside.prepare()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false"
    assert os.environ["DVC_NO_ANALYTICS"] == "1"
    assert os.environ[outside.SITE_CACHE] == str(tmp_path / "cache/uotft/dvc")
    assert stat.S_IMODE((tmp_path / "cache/uotft").stat().st_mode) == 0o700
    monkeypatch.setenv(outside.SITE_CACHE, "mine")
    outside.prepare()
    assert os.environ[outside.SITE_CACHE] == "mine"
    monkeypatch.delenv(outside.SITE_CACHE)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    outside.prepare()
    own = Path(os.environ[outside.SITE_CACHE]).parent
    assert own == tmp_path / f"uotft-{os.getuid()}", "not DVC's own place, which all can write"
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
