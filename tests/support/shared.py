"""What all of pytest's worker processes share: made by the first that asks for it."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder ``name`` that ``make`` has filled, in this worker or in another one.

    It is never changed: copy it before writing into it.
    """
    base = factory.getbasetemp()
    if base.name.startswith("popen-"):  # of a worker; the others' folders are beside it
        base = base.parent
    folder, done = base / f"shared-{name}", base / f"shared-{name}.done"
    with (base / f"shared-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
