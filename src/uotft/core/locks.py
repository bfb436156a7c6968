"""Exclusive locks that name their owner."""

from __future__ import annotations

import fcntl
import json
import logging
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

PATIENCE_S = 30  # for the workers of a dead owner, which hold its lock while they save
POLL_S = 0.2

logger = logging.getLogger(__name__)


class Busy(UserError):
    """Another process holds the lock; the message names it."""


@contextmanager
def exclusive(path: Path, busy: str) -> Iterator[int]:
    """Hold the lock file ``path``; if another process holds it, raise ``Busy`` with its name.

    Yields the file descriptor, for workers to inherit. The lock is the kernel's: it ends with this
    process and those workers, however they end. Waits up to 30 s for workers of a dead owner. At
    the end the file goes, and so do the folders that were made for it.

    NFS has such locks too. On a file system without them the owner's name in the file decides. An
    NFS mounted with ``local_lock`` grants the lock on every machine; then a name from another
    machine gives a warning.
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
            logger.warning(
                "%s: %s has not said that it ended: if it is at work still, stop one of the two",
                path,
                _named(owner),
            )
        try:
            _sign(lock, path)
            logger.debug("%s: locked", path)
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
                held.enter_context(
                    exclusive(path, f"{path.name}: still busy after {timeout_s:g} s")
                )
                break
            except Busy:
                if monotonic() > deadline:
                    raise
            sleep(POLL_S)
        yield


def holder(path: Path) -> str:
    """The process that holds the lock file ``path``, also on another machine; "" if none does."""
    try:
        lock = os.open(path, os.O_RDWR)
    except OSError:
        return ""
    try:
        return "" if _locked(lock) else _named(_owner(lock)).removeprefix("process ")
    finally:
        os.close(lock)


def _sign(lock: int, path: Path) -> None:
    """Write into the open file who owns it: this process."""
    command = " ".join(["uotft", *sys.argv[1:]])
    started = datetime.now(UTC).isoformat(" ", "seconds")
    owner = {"pid": os.getpid(), "host": gethostname(), "started": started, "command": command}
    content = json.dumps(owner).encode()
    os.ftruncate(lock, 0)
    try:
        os.pwrite(lock, content, 0)
    except OSError as error:
        if full := disk.ran_out(error, path, len(content)):
            raise full from error
        raise


def _opened(path: Path) -> int:
    """The open file, made if need be; again where another process has just removed its folder."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def _is(lock: int, path: Path) -> bool:
    """Whether the open file is still the one at ``path``: its last owner may have removed it."""
    try:
        return os.fstat(lock).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _locked(lock: int) -> bool:
    """Try to lock the open file; without locks on the file system: whether no owner is alive."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks on this file system
        owner = _owner(lock)
        return not (owner and _lives(owner))
    return True


def _owner(lock: int) -> dict[str, Any] | None:
    """The owner that the lock file names."""
    try:
        owner: dict[str, Any] = json.loads(os.pread(lock, 2**16, 0))
    except ValueError:  # no owner, or one that is just about to write
        return None
    return owner


def _lives(owner: dict[str, Any]) -> bool:
    """Whether the owner's process lives; that of another machine is taken to."""
    return bool(owner["host"] != gethostname() or Path("/proc", str(owner["pid"])).exists())


def _named(owner: dict[str, Any] | None) -> str:
    if not owner:
        return "another process has just begun"
    return (
        f"process {owner['pid']} on {owner['host']}, since {owner['started']}: {owner['command']}"
    )
