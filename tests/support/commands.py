"""Commands run as a user runs them, in the environment that a user's shell has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile


def call(
    *arguments: str, cwd: Path, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment that runs these tests, as a user would."""
    env = users_environment() | environment
    return subprocess.run(
        arguments, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False
    )


def users_environment() -> dict[str, str]:
    """What a user's shell holds; MLflow's client puts the store it was last shown into our own."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "COLUMNS": "120"}
    for inherited in (
        "DVC_STAGE", "DVC_ROOT", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI", "UOTFT_MIRROR"
    ):  # fmt: skip
        env.pop(inherited, None)
    return env


def answer(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same for ``uotft`` alone, in a child of a process that has imported what commands use.

    For the many ways to call a command, in tenths of a second; `call` is for the first of them.
    That process has never computed anything: OpenMP's threads do not survive a fork, and a child
    that needs them waits for ever.
    """
    assert arguments[0] == "uotft"
    with TemporaryFile() as out, TemporaryFile() as err:
        wanted = {
            "arguments": arguments,
            "cwd": str(cwd),
            "environment": users_environment() | environment,
            "files": [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (out, err)],
        }
        server = _forking()
        assert server.stdin
        assert server.stdout
        server.stdin.write(f"{json.dumps(wanted)}\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess(arguments, code, *said)


@cache
def _forking() -> subprocess.Popen[str]:
    """The process that forks; it ends with this one, at the end of its standard input."""
    here = Path(__file__).parents[1]
    python = f"import sys; sys.path.insert(0, {str(here)!r}); from support import forking"
    return subprocess.Popen(
        [sys.executable, "-c", f"{python}; forking.serve()"],
        env=users_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
