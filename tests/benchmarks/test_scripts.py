"""The benchmarks still call what they measure as it is called today."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.repository import REPOSITORY

STALE = (  # what mypy says of a changed interface
    r"(?m)^benchmarks.* error: (?:.*\[(?:call-arg|name-defined|import-not-found)\]"
    r'|Module(?: "uotft[^"]*")? has no attribute.*)$'
)


@pytest.mark.slow
def test_no_benchmark_calls_what_has_changed(tmp_path: Path) -> None:
    loose = "--no-strict-optional --no-warn-unused-ignores --explicit-package-bases"
    command = [sys.executable, "-m", "mypy", *loose.split(), "--cache-dir", str(tmp_path)]
    done = subprocess.run(
        [*command, "benchmarks"],
        cwd=REPOSITORY,
        env={**os.environ, "MYPYPATH": "src:benchmarks"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "benchmarks" in done.stdout + done.stderr, "mypy has looked"
    stale = re.findall(STALE, done.stdout)
    assert not stale, "\n".join(stale)
