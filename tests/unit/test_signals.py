"""Signals to the process that watches the workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from uotft.processes import _follow, _stopped_by_signals


class Fragile:
    """A signal comes while its destructor runs, where Python ignores exceptions."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)


def test_a_signal_in_a_destructor_stops_the_workers(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    journal = tmp_path / "journal.jsonl"
    journal.touch()
    worker = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(20)"], start_new_session=True
    )
    start = time.monotonic()
    asked: list[int] = []
    with _stopped_by_signals(worker, asked):
        Fragile()
        with pytest.raises(KeyboardInterrupt):
            _follow(worker, journal, lambda points: None, asked)
        assert worker.wait(10) == -signal.SIGTERM
        assert time.monotonic() - start < 10
        with pytest.raises(KeyboardInterrupt):  # the second signal waits for nothing
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before
