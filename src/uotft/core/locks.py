"""Locks that name their owner."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from socket import gethostname
from time import monotonic, sleep
from typing import Any

from uotft.core import disk
from uotft.core.errors import UserError

PATIENCE_S = 30  # for what a dead owner has left: its workers save what they have
POLL_S = 0.2


class Busy(UserError):
    """Another process holds the lock; the message names it."""


@contextmanager
def alone(path: Path, busy: str) -> Iterator[int]:
    """Hold the lock file ``path``, which names its owner; if it is held, say ``busy`` and by whom.

    The kernel's lock goes with the process, however that ends, and with those that inherit the file
    descriptor that is yielded; for what a dead owner has left of these it is waited. NFS knows such
    locks. A file system that does not leaves the name to go by, and an NFS that is mounted with
    locks for each machine alone warns of a name from another one. The file goes at the end, and so
    do the folders that were made for it.
    """
    patience = monotonic() + PATIENCE_S
    new = [folder for folder in path.parents if not folder.exists()]
    lock = _opened(path)
    try:
        while not (_locked(lock) and _is(lock, path)):
            owner = _owner(lock)
            if _is(lock, path) and (not owner or _lives(owner) or monotonic() > patience):
                raise Busy(f"{busy}: {_named(owner)} ({path})")
            sleep(POLL_S)
            os.close(lock)
            lock = _opened(path)
        if (owner := _owner(lock)) and owner["host"] != gethostname():
            print(  # noqa: T201
                f"uotft: {path}: {_named(owner)} has not said that it ended: if it is at work "
                "still, stop one of the two",
                file=sys.stderr,
            )
        try:
            _sign(lock, path)
            yield lock
        finally:
            os.ftruncate(lock, 0)
            path.unlink(missing_ok=True)
            with suppress(OSError):  # somebody has put something there
                for folder in new:
                    folder.rmdir()
    finally:
        os.close(lock)


@contextmanager
def waiting(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock file ``path``; waits up to ``timeout_s`` seconds for its owner to let go."""
    deadline = monotonic() + timeout_s
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(alone(path, f"{path.name}: still busy after {timeout_s:g} s"))
                break
            except Busy:
                if monotonic() > deadline:
                    raise
            sleep(POLL_S)
        yield


def _sign(lock: int, path: Path) -> None:
    """Write into the open file whose it is."""
    words = " ".join(["uotft", *sys.argv[1:]])
    started = datetime.now(UTC).isoformat(" ", "seconds")
    us = {"pid": os.getpid(), "host": gethostname(), "started": started, "command": words}
    content = json.dumps(us).encode()
    os.ftruncate(lock, 0)
    try:
        os.pwrite(lock, content, 0)
    except OSError as error:
        if full := disk.ran_out(error, path, len(content)):
            raise full from error
        raise


def _opened(path: Path) -> int:
    """The file, made if need be, though others remove its folder meanwhile."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def _is(lock: int, path: Path) -> bool:
    """Whether the open file still has its name: who had it before may have removed it."""
    try:
        return os.fstat(lock).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _locked(lock: int) -> bool:
    """Whether the open file is ours now; where there are no locks, whether no one else's."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks on this file system
        owner = _owner(lock)
        return not (owner and _lives(owner))
    return True


def _owner(lock: int) -> dict[str, Any] | None:
    """Who says in the lock file that it is theirs."""
    try:
        owner: dict[str, Any] = json.loads(os.pread(lock, 2**16, 0))
    except ValueError:  # nobody, or somebody who is just about to
        return None
    return owner


def _lives(owner: dict[str, Any]) -> bool:
    """Whether the owner's process is there; that of another machine is taken to be."""
    return bool(owner["host"] != gethostname() or Path("/proc", str(owner["pid"])).exists())


def _named(owner: dict[str, Any] | None) -> str:
    if not owner:
        return "another process has just begun"
    return (
        f"process {owner['pid']} on {owner['host']}, since {owner['started']}: {owner['command']}"
    )
