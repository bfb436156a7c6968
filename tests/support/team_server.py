"""The server of compose.yaml without containers: PostgreSQL, an S3 store and MLflow, on loopback.

MLflow's command and environment are those of compose.yaml, with this machine's addresses. rclone
takes the place of SeaweedFS: it serves a folder by S3, from a package of PyPI.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from pwd import getpwnam
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from support.ports import free_port
from support.repository import REPOSITORY
from support.unreliable_proxy import tracking_server

USER = "nobody"  # PostgreSQL refuses to run as root
PASSWORD = "of-these-tests-alone"  # of both stores


class Database:
    """PostgreSQL in a folder of its own, which keeps its data when it stops."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.command = _postgresql("pg_ctl")
        self.user: dict[str, Any] = {}
        password = folder / "password"
        password.write_text(PASSWORD)
        if os.getuid() == 0:
            self.user = {"user": USER, "group": getpwnam(USER).pw_gid, "extra_groups": []}
            for path in (folder, password):
                shutil.chown(path, USER)
        self._run(
            _postgresql("initdb"), "--username=mlflow", "--auth=scram-sha-256", "--no-sync",
            f"--pwfile={password}", "--encoding=UTF8", f"--pgdata={folder}/data",
        )  # fmt: skip

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder}"
        log = f"--log={self.folder}/log"
        self._run(self.command, "start", "--wait", log, f"--options={options}", *self._data())

    def stop(self, mode: str = "immediate") -> None:
        """Stop it; ``immediate`` is a crash: it recovers from its log at the next start."""
        self._run(self.command, "stop", "--wait", f"--mode={mode}", *self._data())

    def stop_for_good(self) -> None:
        """Stop it, unless a test has left it so."""
        if (self.folder / "data/postmaster.pid").exists():
            self.stop()

    def sql(self, statement: str, name: str = "mlflow") -> str:
        """The answer to a statement."""
        address = f"postgresql://mlflow:{PASSWORD}@127.0.0.1:{self.port}/{name}"
        return self._run(_postgresql("psql"), address, "-Atqc", statement)

    def _data(self) -> list[str]:
        return [f"--pgdata={self.folder}/data"]

    def _run(self, *words: str) -> str:
        with (self.folder.parent / "said").open("w+") as said:  # a pipe would stay open: the server
            done = subprocess.run(
                words, cwd="/", stdout=said, stderr=said, check=False, timeout=120, **self.user
            )
            said.seek(0)
            text = said.read()
        assert done.returncode == 0, f"{words}: {text}"
        return text


class Objects:
    """An S3 store that keeps its objects as files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.process: subprocess.Popen[bytes] | None = None
        (folder / "mlflow").mkdir(parents=True)  # the bucket

    def start(self) -> None:
        """Start it, and wait until it answers."""
        words = ["serve", "s3", f"--addr=127.0.0.1:{self.port}", "--config="]
        words += [f"--auth-key=mlflow,{PASSWORD}", str(self.folder)]
        rclone = _packaged("rclone")
        self.process = subprocess.Popen(
            [rclone, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while not answers(self.port):
            assert self.process.poll() is None, "the S3 store ended"
            assert time.monotonic() < deadline, "the S3 store does not answer"
            time.sleep(0.05)

    def stop(self) -> None:
        """End it."""
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)


@dataclass
class Team:
    """A tracking server that answers at ``address``, and what it stands on."""

    address: str
    database: Database
    objects: Objects


@contextmanager
def team_server() -> Iterator[Team]:
    """MLflow's server on PostgreSQL and S3; skips the test where one of them is not installed."""
    _postgresql("initdb")
    _packaged("rclone")
    for package in ("psycopg", "boto3"):
        pytest.importorskip(package, reason=f"{package} is not here: run `make setup`")
    with ExitStack() as stack:
        # not in pytest's folder, which another user may not enter
        place = Path(stack.enter_context(TemporaryDirectory(prefix="uotft-team-")))
        place.chmod(0o711)
        for name in ("postgresql", "mlflow"):
            (place / name).mkdir()
        database, objects = Database(place / "postgresql"), Objects(place / "objects")
        database.start()
        stack.callback(database.stop_for_good)
        objects.start()
        stack.callback(objects.stop)
        database.sql("CREATE DATABASE mlflow", "postgres")
        service = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]["mlflow"]
        environment = {
            name: _here(str(value), database, objects)
            for name, value in service["environment"].items()
        }
        words = (*service["command"][2:], "--host", "127.0.0.1")
        port = stack.enter_context(
            tracking_server(place / "mlflow", "server", *words, **environment)
        )
        yield Team(f"http://127.0.0.1:{port}", database, objects)


def _here(value: str, database: Database, objects: Objects) -> str:
    """A setting of compose.yaml, with the addresses and the password of this machine."""
    value = value.replace("@database:5432", f"@127.0.0.1:{database.port}")
    value = value.replace("//store:8333", f"//127.0.0.1:{objects.port}")
    value = value.replace("127.0.0.1:5000", "127.0.0.1:*")
    return re.sub(r"\$\{\w+\}", PASSWORD, value)


def _postgresql(name: str) -> str:
    """A program of PostgreSQL; Debian keeps those of servers out of the PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))
    path = os.pathsep.join([*map(str, reversed(places)), os.environ["PATH"]])
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"PostgreSQL ({name}) is not installed")
    return found


def _packaged(name: str) -> str:
    """A program that a package of this environment brings."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{name} is not in this environment: run `make setup`")
    return found


def answers(port: int) -> bool:
    """Whether something of this machine listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
