"""Cells on the workers of a real Dask scheduler: machines are lost, nothing is trained twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.clusters import Cluster, cluster, lose, trainings
from support.commands import call, users_environment
from support.projects import alone, runs, workspace
from support.repository import REPOSITORY
from uotft.core import storage
from uotft.core.errors import Pruned, WorkerFailed
from uotft.core.records import Cell
from uotft.runs import job
from uotft.runs.pool import pool
from uotft.runs.processes import Crew, Fleet

EXPERIMENT = """
title: a row with images of the source, and one without
baseline: none
set: [train.recipe.steps=400, train.recipe.checkpoint_every=20, train.recipe.eval_every=100]
rows:
  - {label: none, strategy: none, set: [train.lambda=0.5]}
  - {label: uot, strategy: uot, set: [train.lambda=0.5]}
"""
RUN = ("uotft", "experiment", "run", "mine.yaml", "--on", "digits", "--seeds", "2")
LONG = ("train.recipe.steps=100000", "train.recipe.checkpoint_every=20")


@pytest.fixture(scope="module")
def project(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its own, since others count the runs and the variants of theirs."""
    made = alone(project, tmp_path_factory.mktemp("alone"))
    (made / "mine.yaml").write_text(EXPERIMENT)
    return made


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Cluster]:
    """A scheduler without workers."""
    with cluster(tmp_path, 0) as made:
        yield made


def start(project: Path, *words: str) -> subprocess.Popen[str]:
    """Start a command whose messages go to the file ``said``; it hears Ctrl-C."""
    with (project / "said").open("w") as said:
        return subprocess.Popen(
            [sys.executable, "-m", *words], cwd=project, env=users_environment(), text=True,
            stdout=subprocess.DEVNULL, stderr=said,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip


def wait(project: Path, process: subprocess.Popen[str], until: Callable[[], object]) -> None:
    deadline = time.monotonic() + 240
    while not until():
        assert process.poll() is None, (project / "said").read_text()
        assert time.monotonic() < deadline, (project / "said").read_text()
        time.sleep(0.05)


def saved(project: Path) -> set[str]:
    """The cells whose training has a checkpoint."""
    try:
        found = [*project.glob("unfinished/variants/*/models/*/*/*/step-*/state.json")]
    except FileNotFoundError:  # a cell has ended in between
        return set()
    return {"-".join(path.parts[-5:-2]) for path in found}


def weights(project: Path) -> dict[str, str]:
    """The SHA-256 of each model of a variant."""
    found = project.glob("variants/*/models/digits/*/*/model.json")
    return {str(path.relative_to(project)): storage.read_json(path)["sha256"] for path in found}


def table(project: Path) -> list[dict[str, str]]:
    """The lines of runs.csv, without the time they took."""
    rows = storage.read_csv(project / "reports/experiments/mine/runs.csv")
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.slow
def test_cells_of_lost_machines_go_on_elsewhere(
    project: Path, machines: Cluster, tmp_path: Path
) -> None:
    # ---- one machine is lost as a whole; of the second one only Dask's worker is killed
    first, second, third = machines.worker(), machines.worker(), machines.worker(nanny=True)
    machines.wait_for(3)
    process = start(project, *RUN, "--scheduler", str(machines.file))

    def under_way() -> bool:
        both = all(trainings(worker).keys() & saved(project) for worker in (first, second))
        return both and bool(trainings(third))

    wait(project, process, under_way)
    [training] = trainings(third).values()
    threads = training.environ().get("OMP_NUM_THREADS")
    assert threads == os.environ.get("OMP_NUM_THREADS"), "not what Dask's nanny sets"
    orphans = trainings(second)
    lose(first)
    second.kill()
    assert process.wait(timeout=240) == 0, (project / "said").read_text()

    said = (project / "said").read_text()
    assert "3 workers, 3 trainings at a time" in said
    assert said.count(" begins again on ") == 2, said
    assert said.count("going on at step ") == 2, "both had a checkpoint"
    assert not any(orphan.is_running() for orphan in orphans.values())
    found = runs(project)
    assert len(found) == len({run.info.run_name for run in found}) == 4
    assert {run.info.status for run in found} == {"FINISHED"}
    assert all("test/top1" in run.data.metrics for run in found)
    assert not [*(project / "unsent").glob("*.*")], "nothing is left to send"
    assert not [*(project / "unfinished").glob(".scheduler-*")]

    # ---- once more: nothing is trained
    models = weights(project)
    done = call(*RUN, "--scheduler", machines.address, cwd=project)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "cell 1" not in done.stderr
    assert weights(project) == models

    # ---- the same numbers as on this machine alone
    local = alone(project, tmp_path)
    done = call(*RUN, "--jobs", "2", cwd=local, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert weights(local) == models
    assert table(local) == table(project)
    assert len(table(local)) == 4


@pytest.mark.slow
def test_a_search_trains_its_grid_at_the_same_time_and_ctrl_c_stops_it(
    project: Path, machines: Cluster
) -> None:
    """Four trainings of two trials: three are under way, and one has not begun."""
    workers = [machines.worker() for _ in range(3)]
    machines.wait_for(3)
    (project / "space.yaml").write_text(
        "train.recipe.learning_rate: {choices: [0.04, 1000000000.0]}\n"
    )
    words = ("uotft", "search", "--dataset", "digits", "--space", "space.yaml")
    words += ("--seeds", "100,101", "--scheduler", machines.address)
    before = {run.info.run_id for run in runs(project)}
    process = start(project, *words)
    wait(project, process, lambda: all(map(trainings, workers)))
    begun = [training for worker in workers for training in trainings(worker).values()]
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 130, (project / "said").read_text()
    assert not any(training.is_running() for training in begun), "the command waits for them"
    assert not any(map(trainings, workers))

    done = call(*words, cwd=project, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    new = [run for run in runs(project) if run.info.run_id not in before]
    [parent] = [run for run in new if run.info.run_name == "search-digits-uot"]
    children = [r for r in new if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert parent.info.status == "FINISHED"
    ends = ["FAILED", "FAILED", "FINISHED", "FINISHED"]
    assert sorted(run.info.status for run in children) == ends, "nothing is tried twice"
    trials = storage.read_csv(project / "search/digits-uot/report/trials.csv")
    assert [row["state"] for row in trials] == ["complete", "failed"]


@pytest.mark.slow
def test_a_training_elsewhere_is_pruned_fails_and_ends_its_workers(
    project: Path, tmp_path: Path
) -> None:
    ws = workspace(project).with_changes(LONG)

    with cluster(tmp_path, 1, allowed_failures=0) as machines:
        fleet = Fleet(scheduler=machines.address)

        def work(crew: Crew, seed: int) -> str:
            def watch(points: object) -> None:
                if seed == 0:
                    raise Pruned

            there = (
                ws if seed < 2 else ws.with_changes([*LONG, "train.recipe.learning_rate=1.0e+9"])
            )
            cell = Cell("digits", "uot", seed)

            def begins(where: str) -> None:
                lost = {1: 1, 3: 0}  # the worker; the scheduler
                if seed in lost:
                    lose(machines.processes[lost[seed]])

            return job.train(there, cell, crew, current=True, watch=watch, begins=begins)

        with pool(fleet, ws, 1, 3) as crews:
            [diverged] = crews.run(work, [2])
            assert isinstance(diverged, WorkerFailed)
            assert diverged.code == 2
            assert "not finite" in diverged.why or "nan" in diverged.why, diverged.why
            [pruned] = crews.run(work, [0])
            assert isinstance(pruned, Pruned)
            assert not trainings(machines.processes[1]), "it has saved and ended"
            [killed] = crews.run(work, [1])
            assert isinstance(killed, WorkerFailed)
            assert killed.why == "1 worker died with it"
            machines.worker()
            with pytest.raises(OSError, match="the scheduler is lost; the same command goes on"):
                [*crews.run(work, [3])]


@pytest.mark.slow
def test_refusals(project: Path, machines: Cluster, tmp_path: Path) -> None:
    def refused(scheduler: object, *more: str) -> str:
        done = call(*RUN, "--scheduler", str(scheduler), *more, cwd=project)
        assert done.returncode == 2, done.stderr[-3000:]
        assert "Traceback" not in done.stderr
        assert "dvc repro" not in done.stderr, "it is said before anything runs"
        return done.stderr

    assert "no Dask scheduler answers there within 5 s" in refused("tcp://127.0.0.1:9")
    assert "got 'localhost'; write tcp://HOST:PORT" in refused("localhost")
    assert "no such file, which `dask scheduler --scheduler-file`" in refused("none.json")
    assert "--dry-run asks no scheduler" in refused(machines.address, "--dry-run")
    assert "--no-train selects on this machine" in refused(machines.address, "--no-train")

    other = Path(shutil.copytree(REPOSITORY / "src", tmp_path / "src"))
    (other / "uotft/runs/pace.py").write_text("# other code\n")
    worker = machines.worker(other)
    machines.wait_for(1)
    assert " has another uotft (0.1.0, code " in refused(machines.address)
    lose(worker)
