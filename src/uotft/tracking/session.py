"""Records a run from begin to end: writes it to the outbox and has it sent to MLflow.

For a training, a separate process sends while it runs (`sender`). A short command sends at its end,
in its own process. Whatever MLflow does not take stays in the outbox for `uotft sync`.
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

PATIENCE_S = 120  # after the run's end, a sender that makes no progress for so long is stopped

logger = logging.getLogger(__name__)
_around: ContextVar[str] = ContextVar("_around", default="")  # id of the enclosing run


@contextmanager
def run(
    root: Path, experiment: str, name: str, *, run_id: str = "", watched: bool = False
) -> Iterator[Run]:
    """A run: FINISHED at the end of the block, KILLED if interrupted, FAILED on other exceptions.

    With ``run_id`` (our own id) it resumes that run, if the store still has it. Inside the block of
    another run it becomes that run's child. With ``watched`` a separate process sends it meanwhile.
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
    """Send a folder, while the block writes it (``watched``) or after the block.

    Yields the file descriptors that workers must inherit.
    """
    if not watched:
        try:
            yield ()
        finally:
            _warn_of_rest(folder, send(root, folder))
        return
    theirs, ours = os.pipe()
    # its own session: so it survives Ctrl-C and the end of this process, and can send the rest
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
    """Wait for the sender as long as it makes progress; another Ctrl-C ends it too."""
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
            "%sthe rest of the run is kept in %s: `uotft sync` sends it to MLflow", reason, folder
        )
