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
    with interruptible(), tempfile.TemporaryDirectory(prefix="uotft-") as folder:
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
        try:
            yield lambda send: _follow(worker, journal, send)
        finally:
            _stop(worker)


def die_with_parent() -> None:
    """Have the kernel send SIGTERM when the process that started this one is gone; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _follow(worker: subprocess.Popen[bytes], journal: Path, send: Callable[[Points], None]) -> None:
    with journal.open(encoding="utf-8") as lines:
        code = None
        while code is None:
            try:
                code = worker.wait(POLL_S)
            except subprocess.TimeoutExpired:
                code = None
            whole = iter(lambda: _whole_line(lines), "")
            if points := [(p["step"], p["numbers"]) for p in map(json.loads, whole)]:
                send(points)
    if code == INTERRUPTED:  # somebody else has asked the worker to stop
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


def _stop(worker: subprocess.Popen[bytes]) -> None:
    if worker.poll() is None:
        os.killpg(worker.pid, signal.SIGTERM)
        try:
            worker.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block alike: what it has opened is closed, then Interrupted."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted") from error
    finally:
        signal.signal(signal.SIGTERM, before)
