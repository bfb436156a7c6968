"""A run from begin to end: writes it to the outbox and has it sent to MLflow.

A training gets a process of its own that sends while it runs (`sender`); a short command sends at
the end, in its own process. What MLflow does not take stays in the outbox for `uotft sync`.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from uuid import uuid4

from uotft.core.errors import Interrupted, Pruned
from uotft.tracking.delivery import send
from uotft.tracking.outbox import SENT, Run, written

PATIENCE_S = 120  # how long a sender may make no progress once its run has ended

logger = logging.getLogger(__name__)
_around: ContextVar[str] = ContextVar("_around", default="")  # id of the run around this code


@contextmanager
def run(
    root: Path, experiment: str, name: str, *, run_id: str = "", watched: bool = False
) -> Iterator[Run]:
    """A run: FINISHED at the end, KILLED when interrupted, FAILED on any other exception.

    With ``run_id`` (our own id) it resumes that run if the store still has it. Inside the block of
    another run it becomes its child. With ``watched`` a process of its own sends it from now on.
    """
    ident = run_id or uuid4().hex
    about = {"id": ident, "experiment": experiment, "name": name, "parent": _around.get()}
    with written(root, about) as folder, _sent(root, folder, watched) as held:
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


@contextmanager
def _sent(root: Path, folder: Path, watched: bool) -> Iterator[Sequence[int]]:
    """Send a folder while the block writes it, or after the block, as far as the store takes it."""
    if not watched:
        try:
            yield ()
        finally:
            _warn_of_rest(folder, send(root, folder))
        return
    theirs, ours = os.pipe()
    # a session of its own: it outlives Ctrl-C and the end of this process until it has sent
    command = [sys.executable, "-m", "uotft.tracking.sender", str(root), str(folder)]
    sender = subprocess.Popen(command, stdin=theirs, start_new_session=True)
    os.close(theirs)
    try:
        yield [ours]
    finally:
        os.close(ours)
        _await(sender, folder)
        _warn_of_rest(folder)


def _await(sender: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for the sender while it makes progress; a second Ctrl-C ends it as well."""
    sent, before, now = folder / SENT, -1, 0
    try:
        while before != now:
            try:
                sender.wait(PATIENCE_S)
                return
            except subprocess.TimeoutExpired:
                before, now = now, sent.stat().st_mtime_ns if sent.exists() else 0
    finally:
        sender.kill()
        sender.wait()


def _warn_of_rest(folder: Path, why: str = "") -> None:
    if folder.is_dir():
        reason = f"{why}; " if why else ""
        logger.warning(
            "%swhat MLflow does not have yet is in %s: `uotft sync` sends it", reason, folder
        )
