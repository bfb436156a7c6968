"""One small project, made as a user makes it: a clone, git, DVC, MLflow, real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import call, clone


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project on which `dvc repro` has been run once, with two strategies and two seeds."""
    folder = clone(tmp_path_factory.mktemp("project"))
    done = call("dvc", "repro", cwd=folder, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder / "repro.txt").write_text(done.stdout)
    return folder
