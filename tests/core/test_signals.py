"""Processes that end with the one that started them, however that one ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.watched_commands import inside, wait

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

STARTER = """
import subprocess, sys, time
from uotft.core import signals
with signals.running([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE) as process:
    process.wait()
"""
STARTED = """
import pathlib, subprocess, time
from uotft.core import signals
pathlib.Path("begun").touch()
time.sleep({late})
signals.end_with_starter()
subprocess.Popen(["sh", "-c", "trap '' TERM INT HUP; touch below; while :; do sleep 1; done"])
time.sleep(600)
"""


@pytest.mark.parametrize(("late", "sign"), [(0, "below"), (1, "begun")])
def test_killed_with_all_below_it(tmp_path: Path, late: float, sign: str) -> None:
    """Also when it has not started anything yet, nor said that it wants to end so."""
    command = [sys.executable, "-c", STARTER, STARTED.format(late=late)]
    process = subprocess.Popen(command, cwd=tmp_path)
    wait((tmp_path / sign).exists)
    process.kill()
    process.wait()
    wait(lambda: not inside(tmp_path), seconds=30)
