"""`dvc exp run`, in place and from a queue: every run is in the project's own store, and named."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from support.commands import call
from support.projects import alone, runs
from support.repository import commit

WHO = {f"GIT_{who}_{what}": "t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
CELLS = "train@digits"


@pytest.fixture
def committed(project: Path, tmp_path: Path) -> Path:
    """A copy of the finished project, in which no run has been tracked and nothing is changed."""
    copy = alone(project, tmp_path)
    (copy / "repro.txt").unlink()
    commit(copy)
    return copy


def experiment(project: Path, *words: str) -> None:
    done = call("dvc", "exp", "run", *words, cwd=project, **WHO)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow
def test_experiments_are_runs_of_the_project(committed: Path) -> None:
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=committed, capture_output=True, text=True, check=True
    ).stdout.strip()

    # two at once, in copies of the project, which both find no store
    experiment(committed, "--queue", "-S", "train.lambda=0.5,0.7", "-n", "queued", CELLS)
    experiment(committed, "--run-all", "-j", "2")
    experiment(committed, "-S", "train.lambda=0.3", "-n", "here", CELLS)
    call("dvc", "queue", "stop", cwd=committed)

    found = runs(committed)
    assert {run.data.tags["dvc.exp.name"]: run.data.params["train.lambda"] for run in found} == {
        "queued-1": "0.5", "queued-2": "0.7", "here": "0.3"}  # fmt: skip
    assert len(found) == 3 * 4, "one a cell"
    for run in found:
        assert run.info.status == "FINISHED"
        assert run.data.tags["dvc.exp.baseline"] == run.data.tags["git.commit"] == head
        place = Path(run.info.artifact_uri.removeprefix("file://"))
        assert place.is_relative_to(committed / "mlruns")
        assert (place / "selection/selection.json").is_file(), "the copy it was made in is gone"
    assert not list((committed / ".dvc/tmp/exps").glob("tmp*"))
