"""Commands run as a user runs them, in the environment that a user's shell has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from tempfile import TemporaryFile


def call(
    *words: str, cwd: Path, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment that runs these tests, as a user would."""
    env = users_environment() | environment
    return subprocess.run(
        words, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False
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


def answer(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same for ``uotft`` alone, in a child that has imported this process's libraries.

    For the many ways to call a command, in tenths of a second; `call` is for the first of them.
    """
    import mlflow  # noqa: F401 (once, for all children)
    import torch  # noqa: F401

    assert words[0] == "uotft"
    with TemporaryFile() as out, TemporaryFile() as err:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            _be_the_command(words, cwd, users_environment() | environment)
        _, status = os.waitpid(pid, 0)
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess(words, os.waitstatus_to_exitcode(status), *said)


def _be_the_command(words: tuple[str, ...], cwd: Path, environment: dict[str, str]) -> None:
    """Never returns."""
    code = 1
    try:
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(cwd)
        sys.argv = list(words)
        signal.alarm(100)
        warnings.resetwarnings()
        import torch

        torch.set_num_threads(1)  # OpenMP's others did not survive the fork, and would be awaited
        from uotft.cli.app import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 (the child must never return into pytest)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
