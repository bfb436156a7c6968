"""Environment variables: the only module that reads them, but for MLflow's own in `tracking`.

It also sets what the tools below uotft find there: no reports to their makers, no shared caches.
What the user has set stays.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

#: Each tool's own switch; DO_NOT_TRACK is what some agree on.
QUIET = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
SITE_CACHE = "DVC_SITE_CACHE_DIR"
LOG_LEVEL = "UOTFT_LOG_LEVEL"


def prepare() -> None:
    """Set what the user has not set, for this process and those that it starts."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if SITE_CACHE not in os.environ:
        with suppress(OSError):  # the home cannot be written: DVC then uses its own place
            os.environ[SITE_CACHE] = str(site_cache())


def site_cache() -> Path:
    """A folder that only this user can write, for DVC's indexes, which are pickles.

    DVC's default is /var/tmp/dvc, where another user can plant pickles first (CVE-2025-69872).
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uotft"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / "dvc"


def for_child(*, without: Collection[str] = (), **added: str) -> dict[str, str]:
    """The environment of a process to start: ours, less some variables, with others added."""
    ours = {name: value for name, value in os.environ.items() if name not in without}
    return ours | added


def log_level() -> str:
    """The level of messages that the process which started this one wants, or ""."""
    return os.environ.get(LOG_LEVEL, "")


def set_log_level(level: str) -> None:
    """Hand the level of messages down to the processes that this one starts."""
    os.environ[LOG_LEVEL] = level


def dvc_stage() -> str:
    """The stage of DVC that started this process, such as ``train@digits-uot-0``, or ""."""
    return os.environ.get("DVC_STAGE", "")


def dvc_experiment() -> dict[str, str]:
    """Name, baseline and project of the DVC experiment that this process is part of, if any.

    Keys are ``name``, ``baseline`` and ``root``: DVC runs queued experiments in copies of the
    project, and names the project itself in DVC_ROOT.
    """
    if "DVC_EXP_NAME" not in os.environ:
        return {}
    names = {"name": "DVC_EXP_NAME", "baseline": "DVC_EXP_BASELINE_REV", "root": "DVC_ROOT"}
    return {key: os.environ[name] for key, name in names.items() if name in os.environ}


def tracking_uri() -> str:
    """The MLflow store that the user names, or ""."""
    return os.environ.get("MLFLOW_TRACKING_URI", "")


def launched() -> tuple[int, int] | None:
    """(rank, number of processes), where torchrun or `accelerate launch` started this process."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return (int(os.environ["RANK"]), world) if world > 1 and "RANK" in os.environ else None
