"""Records a run from begin to end: writes it to the outbox and has it sent to MLflow.

For trainings, a separate process sends while they run (`sender`); one is enough for all runs of a
command. A short command sends at its end, in its own process. Whatever MLflow does not take stays
in the outbox for `uotft sync`.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from threading import Lock
from uuid import uuid4

from uotft.core.errors import Interrupted, Pruned
from uotft.tracking.delivery import send
from uotft.tracking.outbox import SENT, Run, written

PATIENCE_S = 120  # after the run's end, a sender that makes no progress for so long is stopped

logger = logging.getLogger(__name__)
_around: ContextVar[str] = ContextVar("_around", default="")  # id of the enclosing run
_sender: ContextVar[Sender | None] = ContextVar("_sender", default=None)


@contextmanager
def run(
    home: Path,
    experiment: str,
    name: str,
    *,
    project: str = "",
    run_id: str = "",
    watched: bool = False,
) -> Iterator[Run]:
    """A run: FINISHED at the end of the block, KILLED if interrupted, FAILED on other exceptions.

    Its store is in the folder ``home``. With ``run_id`` (our own id) it resumes that run, if the
    store still has it. Inside the block of another run it becomes that run's child. With
    ``watched`` a separate process sends it meanwhile. ``project`` names the project, unless its
    folder is ``home``.
    """
    ident = run_id or uuid4().hex
    about = {"id": ident, "experiment": experiment, "name": name, "parent": _around.get()}
    about |= {"project": project} if project else {}
    with written(home, about) as folder, _sent(home, folder, watched) as held:
        made, status, outer = Run(folder, ident, held), "FAILED", _around.set(ident)
        try:
            yield made
            status = "FINISHED"
        except (KeyboardInterrupt, Interrupted, Pruned):
            status = "KILLED"
            raise
        finally:
            _around.reset(outer)
            made.end(status)


def enclosing() -> str:
    """Our own id of the run around this block, or ""; for a process that trains elsewhere."""
    return _around.get()


@contextmanager
def inside(run_id: str) -> Iterator[None]:
    """Runs of the block are children of a run that another process has begun; of none if ""."""
    outer = _around.set(run_id)
    try:
        yield
    finally:
        _around.reset(outer)


@contextmanager
def sending(home: Path) -> Iterator[Sender]:
    """One process for all runs of the block that are watched, however they overlap.

    Such a run ends without waiting for MLflow; the end of the block waits for all.
    """
    outer = _sender.get()
    if outer is not None:
        yield outer
        return
    sender = Sender(home)
    token = _sender.set(sender)
    try:
        yield sender
    finally:
        _sender.reset(token)
        sender.close()


class Sender:
    """The process that sends runs to MLflow; it starts with the first folder it gets."""

    def __init__(self, home: Path) -> None:
        self.home, self.folders = home, list[Path]()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe = -1
        self._lock = Lock()  # trainings in several threads share it

    def take(self, folder: Path) -> int:
        """Send a folder while it is written.

        Returns the file descriptor that workers must inherit: while one is open, the sender waits.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            with suppress(BrokenPipeError):  # it has just been killed: the run stays in the outbox
                os.write(self._pipe, f"{folder}\n".encode())
            self.folders.append(folder)
            return self._pipe

    def _start(self) -> None:
        theirs, ours = os.pipe()
        # its own session: so it survives Ctrl-C and the end of this process, and can send the rest
        command = [sys.executable, "-m", "uotft.tracking.sender", str(self.home)]
        self._process = subprocess.Popen(command, stdin=theirs, start_new_session=True)
        os.close(theirs)
        if self._pipe >= 0:
            os.close(self._pipe)
        self._pipe = ours

    def close(self) -> None:
        """Wait for the process as long as it makes progress; another Ctrl-C ends it too."""
        if self._process is None:
            return
        os.close(self._pipe)
        before, now = (-1, -1), (0, 0)
        try:
            while before != now:
                try:
                    self._process.wait(PATIENCE_S)
                    break
                except subprocess.TimeoutExpired:
                    before, now = now, self._progress()
        finally:
            self._process.kill()
            self._process.wait()
            for folder in self.folders:
                _warn_of_rest(folder)

    def _progress(self) -> tuple[int, int]:
        """What grows while the process works: the folders that are gone, and the last note."""
        notes = [folder / SENT for folder in self.folders]
        times = [note.stat().st_mtime_ns for note in notes if note.exists()]
        return sum(not folder.exists() for folder in self.folders), max(times, default=0)


@contextmanager
def _sent(home: Path, folder: Path, watched: bool) -> Iterator[Sequence[int]]:
    """Send a folder, while the block writes it (``watched``) or after the block.

    Yields the file descriptors that workers must inherit.
    """
    if watched:
        with sending(home) as sender:
            yield [sender.take(folder)]
        return
    try:
        yield ()
    finally:
        _warn_of_rest(folder, send(home, folder))


def _warn_of_rest(folder: Path, why: str = "") -> None:
    if folder.is_dir():
        reason = f"{why}; " if why else ""
        logger.warning(
            "%sthe rest of the run is kept in %s: `uotft sync` sends it to MLflow", reason, folder
        )
