"""The repository that is tested: its folder, its files, and a commit in a copy."""

from __future__ import annotations

import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def files() -> list[str]:
    """The repository's files as they are now, those not yet added too."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    return [name for name in listed if (REPOSITORY / name).is_file()]


def commit(folder: Path) -> None:
    """Commit everything."""
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x", "--allow-empty"]):
        subprocess.run([*git, *arguments], cwd=folder, check=True)
