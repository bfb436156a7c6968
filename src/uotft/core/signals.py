"""Signals: how a command is asked to stop, and how it stops the processes that it started.

SIGTERM asks a process to stop. If it has not after GRACE_S seconds, it is ended by SIGKILL (sent by
its parent) or SIGALRM (its own timer).

| process | treats SIGTERM as |
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from types import FrameType

POLL_S = 0.2
GRACE_S = 20  # time for a process to save its state between SIGTERM and being killed
INTERRUPTED = 130  # exit code of a process that was asked to stop and did

# Linux: include/uapi/linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


@dataclass
class StopRequest:
    """The number of times this process was asked to stop; true after the first.

    Signal handlers only count, and the code checks the count at points where it can stop. An
    exception from a handler could be raised anywhere, even in a destructor, which would swallow it
    (MLflow's database did).
    """

    count: int = 0

    def __bool__(self) -> bool:
        return self.count > 0

    def listen(self) -> None:
        """Count each SIGTERM; GRACE_S after the first, SIGALRM ends this process."""

        def ask(number: int, frame: FrameType | None) -> None:
            if not self:  # only the first request starts the timer
                signal.alarm(GRACE_S)
            self.count += 1

        signal.signal(signal.SIGTERM, ask)

    def listen_no_more(self) -> None:
        """Let SIGTERM end this process again; clears the timer."""
        signal.alarm(0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def install_as_ctrl_c() -> None:
    """Make SIGTERM end this command as Ctrl-C does: by an exception, so that it can clean up.

    If the exception is lost (in C code or a destructor), SIGALRM ends the process.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.alarm(GRACE_S)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


@contextmanager
def as_ctrl_c() -> Iterator[None]:
    """The same within a block; restores the previous handler afterwards and clears the timer."""
    before = signal.getsignal(signal.SIGTERM)
    install_as_ctrl_c()
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGTERM, before)


@contextmanager
def passed_on(
    processes: Sequence[subprocess.Popen[bytes]], stop: StopRequest | None = None
) -> Iterator[StopRequest]:
    """Pass Ctrl-C and SIGTERM on to ``processes`` as SIGTERM, and count them in ``stop``.

    The block gets the count, and must stop by itself after the first signal. The second raises
    KeyboardInterrupt.
    """
    stop = StopRequest() if stop is None else stop  # one without a request is false

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
    stdin: int | None = None,
    stdout: int | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process in its own session; stops it and all its children when the block ends.

    Ctrl-C reaches them only through this process. On Linux this process adopts their orphans, so
    that it can wait for those too. If this process is killed, nothing stops them, unless the one
    started calls ``end_with_starter`` and its ``stdin`` is a pipe.
    """
    _adopt_orphans(True)
    try:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=stdin,
            stdout=stdout,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            stop([process])
            if process.stdin:
                process.stdin.close()
    finally:
        _adopt_orphans(False)


def stop(processes: Sequence[subprocess.Popen[bytes]], grace_s: float = GRACE_S) -> None:
    """Stop processes, each the leader of a session, with their groups: SIGTERM, later SIGKILL.

    Returns when all have ended. Switches this process's own timer off, since the wait is bounded.
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
    """Whether a process is alive, or a child of its group that this process has adopted."""
    if process.poll() is None:
        return True
    with suppress(ChildProcessError):  # no child of ours is left in the group
        while True:
            found, _ = os.waitpid(-process.pid, os.WNOHANG)
            if not found:
                return True
    return False


def _send(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to the process group that ``process`` leads."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def end_with_starter() -> None:
    """Kill this process and all that it starts when the process that started it has ended.

    For a process that ``running`` has started with a pipe as ``stdin``: its other end closes when
    the starter ends, by whatever signal and however early. A thread waits for that and kills the
    group at once, so that a process that is busy, stopped or about to start cannot be missed.
    """

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.killpg(os.getpid(), signal.SIGKILL)  # the leader's: an error in any other process

    Thread(target=wait, daemon=True).start()


def die_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent ends; Linux only."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _adopt_orphans(wanted: bool) -> None:
    """Make orphans below this process its children, instead of process 1's; Linux only."""
    _prctl(PR_SET_CHILD_SUBREAPER, int(wanted))


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)
