"""Worker processes: start one or N, follow the points they report, stop them all.

The workers append to a journal, a file of JSON lines {"step": ..., "numbers": {...}}.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from uotft.errors import Interrupted, WorkerFailed

POLL_S = 0.2
GRACE_S = 20  # between asking the workers to stop, which save first, and killing them
INTERRUPTED = 130  # a worker's exit code after it has saved on SIGTERM
Points = list[tuple[int, dict[str, float]]]
Follow = Callable[[Callable[[Points], None]], None]


@contextmanager
def workers(words: list[str], processes: int) -> Iterator[Follow]:
    """Start the workers; the block gets ``follow(send)``, which returns when they have finished."""
    with tempfile.TemporaryDirectory(prefix="uotft-") as folder:
        journal = Path(folder) / "journal.jsonl"
        journal.touch()
        module = ["-m", "uotft.worker", str(journal), *words]
        if processes > 1:
            launcher = ["-m", "uotft.launcher", "--standalone", "--nproc-per-node"]
            module = [*launcher, str(processes), *module]
        # a session of its own: Ctrl-C reaches the workers through this process alone
        worker = subprocess.Popen(
            [sys.executable, *module], start_new_session=True, preexec_fn=die_with_parent
        )
        asked: list[int] = []
        try:
            with _stopped_by_signals(worker, asked):
                yield lambda send: _follow(worker, journal, send, asked)
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted") from error
        finally:
            _stop(worker, asked)


def die_with_parent() -> None:
    """Have the kernel send SIGTERM when the process that started this one is gone; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _follow(
    worker: subprocess.Popen[bytes],
    journal: Path,
    send: Callable[[Points], None],
    asked: list[int],
) -> None:
    with journal.open(encoding="utf-8") as lines:
        code = None
        while code is None:
            if asked:
                raise KeyboardInterrupt
            try:
                code = worker.wait(POLL_S)
            except subprocess.TimeoutExpired:
                code = None
            whole = iter(lambda: _whole_line(lines), "")
            if points := [(p["step"], p["numbers"]) for p in map(json.loads, whole)]:
                send(points)
    if code == INTERRUPTED or (code and asked):  # perhaps somebody else has asked the worker
        raise KeyboardInterrupt
    if code:
        raise WorkerFailed(code)


def _whole_line(lines: Any) -> str:
    """The next complete line, or nothing: a line that is still being written is left for later."""
    position = lines.tell()
    line: str = lines.readline()
    if line.endswith("\n"):
        return line
    lines.seek(position)
    return ""


def _stop(worker: subprocess.Popen[bytes], asked: list[int]) -> None:
    if worker.poll() is None:
        if not asked:
            os.killpg(worker.pid, signal.SIGTERM)
        try:
            worker.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


@contextmanager
def _stopped_by_signals(worker: subprocess.Popen[bytes], asked: list[int]) -> Iterator[None]:
    """Ctrl-C and SIGTERM are passed on to the workers, and listed; the second one interrupts here.

    An exception from a signal handler comes anywhere: it was lost in destructors of MLflow's
    database. So it is ``_follow`` that interrupts after the first one.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) > 1:
            raise KeyboardInterrupt
        if worker.returncode is None:
            os.killpg(worker.pid, signal.SIGTERM)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
