"""Signals: how a command is asked to stop, and how it stops the processes that it started.

SIGTERM asks, after at most GRACE_S seconds SIGKILL (from outside) or SIGALRM (from within) follows.

| who | hears SIGTERM as |
|---|---|
| a command without workers | Ctrl-C: KeyboardInterrupt (``install_as_ctrl_c``) |
| a command with workers | a request that it passes on to them (``passed_on``) |
| a worker | a request to save and leave after this step (``StopRequest.listen``) |
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from types import FrameType

POLL_S = 0.2
GRACE_S = 20  # between asking a process to stop, which saves first, and killing it
INTERRUPTED = 130  # the exit code of a process that stopped because it was asked to

# Linux: include/uapi/linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


@dataclass
class StopRequest:
    """How often this process was asked to stop; true once it was.

    Signal handlers only count here, and the code looks where it can stop: an exception from a
    handler comes anywhere, and was lost in destructors of MLflow's database.
    """

    count: int = 0

    def __bool__(self) -> bool:
        return self.count > 0

    def listen(self) -> None:
        """Count each SIGTERM; GRACE_S after the first one SIGALRM ends this process."""

        def ask(number: int, frame: FrameType | None) -> None:
            if not self:  # a second one gives no more time
                signal.alarm(GRACE_S)
            self.count += 1

        signal.signal(signal.SIGTERM, ask)


def install_as_ctrl_c() -> None:
    """SIGTERM ends this command as Ctrl-C does, by an exception that lets it tidy up.

    SIGALRM ends one that does not notice: in C code, or in a destructor.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.alarm(GRACE_S)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


@contextmanager
def as_ctrl_c() -> Iterator[None]:
    """The same for a block; afterwards the handler is the one before, and no alarm is set."""
    before = signal.getsignal(signal.SIGTERM)
    install_as_ctrl_c()
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGTERM, before)


@contextmanager
def passed_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[StopRequest]:
    """Pass Ctrl-C and SIGTERM on to ``processes``, and count them; the second one interrupts here.

    The block must look at the request that it gets, and stop after the first signal itself.
    """
    stop = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.count += 1
        if stop.count > 1:
            raise KeyboardInterrupt
        for process in processes:
            if process.returncode is None:
                _send(process, signal.SIGTERM)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def running(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdout: int | None = None,
    preexec_fn: Callable[[], None] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process in a session of its own; at the end it and all its children are stopped.

    Ctrl-C reaches them through this process alone. On Linux this process adopts children whose
    parent was killed, so that it can wait for them, too.
    """
    _adopt_orphans(True)
    try:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdout=stdout,
            preexec_fn=preexec_fn,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            stop([process])
    finally:
        _adopt_orphans(False)


def stop(processes: Sequence[subprocess.Popen[bytes]], grace_s: float = GRACE_S) -> None:
    """End processes that lead a session each, and their groups: SIGTERM, later SIGKILL.

    Returns when all have ended. A command's own alarm is switched off: this wait ends by itself.
    """
    signal.alarm(0)
    patience, number = monotonic() + grace_s, signal.SIGTERM
    living = [process for process in processes if _lives(process)]
    for process in living:
        _send(process, number)
    while living := [process for process in living if _lives(process)]:
        if monotonic() > patience:
            for process in living:
                _send(process, signal.SIGKILL)
        sleep(0.05)


def _lives(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process lives, or a child of its group that this process has adopted."""
    if process.poll() is None:
        return True
    with suppress(ChildProcessError):  # the group has no child of ours any more
        while True:
            found, _ = os.waitpid(-process.pid, os.WNOHANG)
            if not found:
                return True
    return False


def _send(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to the group of a process that leads one."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def die_with_parent() -> None:
    """Have the kernel send SIGTERM when the process that started this one is gone; Linux only."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _adopt_orphans(wanted: bool) -> None:
    """Let orphans below this process become its children, not those of process 1; Linux only."""
    _prctl(PR_SET_CHILD_SUBREAPER, int(wanted))


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)
