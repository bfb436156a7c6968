"""What a run of tests/faults measured: for results.json, of which `make docs` makes a table."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from support.repository import REPOSITORY


def collect(stats: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """For each file: how many tests passed and were skipped, and what they measured.

    ``stats`` is what pytest keeps of the reports: outcome -> reports.
    """
    found: dict[str, dict[str, Any]] = {}
    for outcome in ("passed", "skipped"):
        for report in stats.get(outcome, ()):
            path, _, test = report.nodeid.partition("::")
            file = found.setdefault(Path(path).name, {"passed": 0, "skipped": 0, "measured": {}})
            file[outcome] += 1
            for name, measured in report.user_properties:
                if name == "measured":
                    before = file["measured"].get(test)
                    file["measured"][test] = f"{before}; {measured}" if before else measured
    return {
        name: file | {"measured": dict(sorted(file["measured"].items()))}
        for name, file in sorted(found.items())
    }


def whole(config: pytest.Config) -> bool:
    """Whether all tests of the files ran: none was chosen by name, mark or an earlier failure."""
    options = ("keyword", "markexpr", "deselect", "lf", "failedfirst")
    chosen = any(config.getoption(option, None) for option in options)
    return not chosen and not any("::" in word for word in config.args)


def write(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """Replace in ``path`` the files that ran; each has the commit, day and machine of its run."""
    origin = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": _commit(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    files = kept | {name: origin | file for name, file in found.items()}
    there = {name: files[name] for name in sorted(files) if (path.parent / name).exists()}
    text = json.dumps(there, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _commit() -> str:
    """The commit, with "and changes" behind it where src/ or tests/ are not as committed."""
    git = ["git", "-C", str(REPOSITORY)]
    head = subprocess.check_output([*git, "rev-parse", "--short=7", "HEAD"], text=True).strip()
    command = [*git, "status", "--porcelain", "--", "src", "tests"]
    changed = subprocess.check_output(command, text=True)
    others = [line for line in changed.splitlines() if not line.endswith("faults/results.json")]
    return head + " and changes" * bool(others)
