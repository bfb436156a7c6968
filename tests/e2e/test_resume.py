"""`uotft train` interrupted and started again: one run, each point once, the bytes of no stop."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from support.commands import call, users_environment
from support.projects import runs
from support.watched_commands import ranks

INSIDE_DVC = users_environment() | {"DVC_STAGE": "train"}
MADE = ("model.safetensors", "history.csv")


@pytest.fixture
def long(project: Path) -> Path:
    """The project with a training of 1,200 steps, and a checkpoint every 20."""
    params = project / "params.yaml"
    before = params.read_text()
    changed = yaml.safe_load(before)
    changed["train"]["recipe"] |= {
        "steps": 1200,
        "log_every": 1,
        "eval_every": 100,
        "checkpoint_every": 20,
    }
    params.write_text(yaml.safe_dump(changed, sort_keys=False))
    yield project
    params.write_text(before)


def start(project: Path, *words: str) -> subprocess.Popen[str]:
    """Start a training as DVC does: what is upstream is up to date."""
    command = [sys.executable, "-m", "uotft", "train", "--dataset", "digits", *words]
    return subprocess.Popen(command, cwd=project, env=INSIDE_DVC, stderr=subprocess.PIPE, text=True)


def wait(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def newest(left: Path) -> int:
    """The step of the newest checkpoint."""
    return max(int(p.parent.name.removeprefix("step-")) for p in left.glob("step-*/state.json"))


def points(run_id: str, name: str) -> list[tuple[int, float]]:
    import mlflow

    return [(m.step, m.value) for m in mlflow.MlflowClient().get_metric_history(run_id, name)]


@pytest.mark.slow
def test_interrupted_and_killed_it_stays_one_run(long: Path) -> None:
    words = ("--strategy", "none", "--seed", "7")
    folder, left = (long / kind / "digits/none/7" for kind in ("models", "unfinished/models"))
    done = call("uotft", "train", "--dataset", "digits", *words, cwd=long)
    assert done.returncode == 0, done.stderr[-3000:]
    whole = [(folder / name).read_bytes() for name in MADE]
    [first] = [r for r in runs(long) if r.info.run_name == "digits-none-7"]
    shutil.rmtree(folder)
    assert not left.exists()

    # SIGTERM: saved, marked KILLED
    process = start(long, *words)
    # the worker may be faster than the import of MLflow
    wait(process, lambda: (left / "run.json").exists() and any(left.glob("step-*/state.json")))
    process.terminate()
    _, said = process.communicate(timeout=150)  # it sends the run, too
    assert process.returncode == 130
    assert "interrupted; the same command goes on at step" in said
    assert "Traceback" not in said
    assert not folder.exists()
    [run] = [
        r
        for r in runs(long)
        if r.info.run_name == "digits-none-7" and r.info.run_id != first.info.run_id
    ]
    assert run.info.status == "KILLED"

    # SIGKILL of the watcher: its worker, an orphan, saves and leaves
    process = start(long, *words)
    stopped = newest(left)
    wait(process, lambda: not (left / f"step-{stopped:09}").exists())
    process.kill()
    _, said = process.communicate(timeout=150)  # its sender holds the pipe
    assert f"going on at step {stopped}" in said
    deadline = time.monotonic() + 25
    while ranks(long):
        assert time.monotonic() < deadline, "the worker outlived its watcher"
        time.sleep(0.05)
    assert newest(left) > stopped

    # the same command once more
    done = call("uotft", "train", "--dataset", "digits", *words, cwd=long, DVC_STAGE="train")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(folder / name).read_bytes() for name in MADE] == whole
    assert not left.exists()
    both = [r for r in runs(long) if r.info.run_name == "digits-none-7"]
    assert {r.info.run_id: r.info.status for r in both} == {
        first.info.run_id: "FINISHED",
        run.info.run_id: "FINISHED",
    }
    for name in ("loss/target", "val/top1"):
        expected, got = (points(r.info.run_id, name) for r in (first, run))
        assert sorted(got) == expected, "each point once, with its value"
