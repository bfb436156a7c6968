"""The faults of docs/reliability.md, a file each: few trials in CI, many with `make faults`.

Each test says what it measured; the figures stand at the end of what pytest prints. With the full
counts they are written to results.json, too, and `make docs` makes the page's table of it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support import fault_results
from support.watched_commands import change, ready

RESULTS = Path(__file__).parent / "results.json"
FULL = os.environ.get("UOTFT_FAULTS") == "full"


@pytest.fixture
def trials() -> Callable[[int, int], int]:
    """``trials(few, many)``: how often to try, in CI and with `make faults`."""
    return lambda few, many: many if FULL else few


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """``measured(words)``: a figure for the table of docs/reliability.md."""
    return lambda words: record_property("measured", words)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    """Print what was measured, fault by fault; keep it, if all tests of the files ran in full."""
    found = fault_results.collect(terminalreporter.stats)
    lines = [f"{n}::{t}: {w}" for n, file in found.items() for t, w in file["measured"].items()]
    if lines:
        terminalreporter.section("faults, as measured")
        for line in sorted(lines):
            terminalreporter.line(line)
    if FULL and exitstatus == 0 and fault_results.whole(config):
        fault_results.write(RESULTS, found)
        terminalreporter.line(f"written to {RESULTS}; now run: make docs")


@pytest.fixture(scope="session")
def tracked(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny workspace, ready to train as `uotft train` does; copy it before writing into it."""
    return ready(tiny, tmp_path_factory.mktemp("tracked") / "project")


@pytest.fixture
def cell(tracked: Path, tmp_path: Path) -> Path:
    """A copy of ``tracked`` that the test may change, with a long training in it."""
    project = Path(shutil.copytree(tracked, tmp_path / "project"))
    change(project)
    return project
