"""Commands run as a user runs them, in the environment that a user's shell has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


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
    for inherited in ("DVC_STAGE", "DVC_ROOT", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI"):
        env.pop(inherited, None)
    return env
