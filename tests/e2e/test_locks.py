"""`uotft train` while another process holds DVC's lock: it needs none, or it waits and says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import alone, call, users_environment
from held import holding

WORDS = ("train", "--dataset", "digits", "--strategy", "none", "--seed")


@pytest.fixture(scope="module")
def project(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its own, since others count the runs of theirs."""
    return alone(project, tmp_path_factory.mktemp("alone"))


def test_what_is_up_to_date_is_trained_on_without_the_lock(project: Path) -> None:
    with holding(project) as other:
        done = call("uotft", *WORDS, "7", cwd=project)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"uotft: process {other.pid} (" in done.stderr
    assert (
        "holds DVC's lock; by dvc.lock all is made with the settings of params.yaml" in done.stderr
    )
    assert "dvc repro" not in done.stderr
    assert "trained digits-none-7" in done.stdout


def test_what_is_missing_waits_for_the_lock(project: Path) -> None:
    (project / "overlap/digits.json").unlink()
    with holding(project) as other:
        process = subprocess.Popen(
            [sys.executable, "-m", "uotft", *WORDS, "8"],
            cwd=project,
            env=users_environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        said = process.stderr.readline()
    _, rest = process.communicate(timeout=300)
    assert said.startswith(f"uotft: waiting for process {other.pid} (")
    assert said.endswith("which holds DVC's lock: to be made are overlap@digits\n")
    assert process.returncode == 0, rest[-3000:]
    assert "bringing up to date: dvc repro" in rest
    assert (project / "models/digits/none/8/model.safetensors").is_file()
