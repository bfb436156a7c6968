"""One small project, made as a user makes it: a clone, git, DVC, MLflow, real processes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import REPOSITORY, call, tiny_params, write_params


def clone(folder: Path) -> Path:
    """The repository's files as they are now, committed in a git repository of their own."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    for name in filter(None, listed):
        if (REPOSITORY / name).is_file() and name != "dvc.lock":
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target)
    write_params(folder, tiny_params())
    commit(folder)
    return folder


def commit(folder: Path) -> None:
    """Commit everything."""
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x", "--allow-empty"]):
        subprocess.run([*git, *words], cwd=folder, check=True)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project on which `dvc repro` has been run once, with two strategies and two seeds."""
    folder = clone(tmp_path_factory.mktemp("project"))
    done = call("dvc", "repro", cwd=folder, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder / "repro.txt").write_text(done.stdout)
    return folder
