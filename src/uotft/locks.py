"""A lock of our own; DVC's, and its dvc.lock, read without DVC: who holds it, what is made anyway.

While a command of DVC looks at the pipeline, .dvc/tmp/lock is locked and names the process; while a
stage is under way, .dvc/tmp/rwlock lists what the stage reads and writes, with its process. Another
`dvc repro` fails as long.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from uotft.errors import UserError


@contextmanager
def alone(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock file ``path``, which goes with the process; if it is held, say ``busy``."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(busy) from error
    try:
        yield
    finally:
        lock.release()


def holder(root: Path) -> str:
    """The process that holds DVC's locks around ``root``, and its command; empty if none does."""
    here = next((f for f in (root, *root.parents) if (f / ".dvc").is_dir()), root) / ".dvc/tmp"
    try:
        with (here / "lock").open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _command(file.read().strip())
    except OSError:
        return ""  # no command of DVC has been there
    try:
        held = json.loads((here / "rwlock").read_text("utf-8"))
    except (OSError, ValueError):
        return ""
    readers = [reader for found in held.get("read", {}).values() for reader in found]
    for entry in (*held.get("write", {}).values(), *readers):
        if Path("/proc", str(entry["pid"])).exists():
            return f"{entry['pid']} ({entry['cmd']})"
    return ""


def unmade(root: Path, stages: list[str]) -> list[str]:
    """Those of ``stages`` that dvc.lock does not have with today's params.yaml and outputs."""
    try:
        lock, params = (
            yaml.safe_load((root / name).read_text("utf-8")) for name in ("dvc.lock", "params.yaml")
        )
    except (OSError, yaml.YAMLError):  # perhaps it is being written
        return stages
    made = lock["stages"]
    return [name for name in stages if name not in made or not _as_it_was(root, made[name], params)]


def _as_it_was(root: Path, stage: dict[str, Any], params: dict[str, Any]) -> bool:
    then = stage.get("params", {}).get("params.yaml", {})
    now = {key: reduce(lambda section, word: section.get(word, {}), key.split("."), params)
           for key in then}  # fmt: skip
    return then == now and all(_is_there(root / out["path"], out["md5"]) for out in stage["outs"])


def _is_there(path: Path, md5: str) -> bool:
    """Whether a file has these bytes; of a folder, whose hash is of DVC's own making, if it is."""
    if md5.endswith(".dir") or not path.is_file():
        return path.is_dir()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() == md5


def _command(pid: str) -> str:
    try:
        words = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
    except OSError:
        return pid
    return f"{pid} ({' '.join(os.fsdecode(b' '.join(words)).split())})"
