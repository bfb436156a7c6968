"""Fault 15: one training with several processes; SIGKILL of the watcher, and of the watcher and the
sender.

Expected: one MLflow run; a training that is killed is shown as KILLED, and goes on in the same run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from support.commands import call, users_environment
from support.projects import runs
from support.watched_commands import ranks

WAIT_S = 300


def named(project: Path, name: str) -> list:
    return [r for r in runs(project) if r.info.run_name == name]


def until(true: Callable[[], object], why: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, why
        time.sleep(0.1)


@pytest.fixture
def endless(project: Path) -> Iterator[Path]:
    """The project with a training that does not end by itself."""
    params = project / "params.yaml"
    before = params.read_text()
    long = yaml.safe_load(before)
    long["train"]["recipe"] |= {"steps": 100_000, "eval_every": 0, "checkpoint_every": 20}
    params.write_text(yaml.safe_dump(long, sort_keys=False))
    yield project
    params.write_text(before)


def start(project: Path, *words: str) -> subprocess.Popen[bytes]:
    """`uotft train` where all that it needs is up to date."""
    command = [sys.executable, "-m", "uotft", "train", "--current", "--dataset", "digits", *words]
    environment = users_environment()
    return subprocess.Popen(command, cwd=project, env=environment, stderr=subprocess.DEVNULL)


def children(leader: int) -> dict[int, str]:
    """{process: command} of those that a process has started."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            command = stat.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if parent == leader:
            found[int(stat.parent.name)] = command
    return found


def test_many_processes_make_one_run(
    project: Path, trials: Callable[[int, int], int], measured: Callable[[str], None]
) -> None:
    before, world = len(runs(project)), str(trials(2, 4))
    words = ("uotft", "train", "--dataset", "digits", "--strategy", "uot", "--seed", "3")
    done = call(*words, "--num-processes", world, cwd=project)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(runs(project)) == before + 1
    [run] = named(project, "digits-uot-3")
    assert run.info.status == "FINISHED"
    assert run.data.params["processes"] == world
    assert (project / "models/digits/uot/3/model.safetensors").is_file()
    history = (project / "models/digits/uot/3/history.csv").read_text()
    assert len(history.split()) == 1 + 5, "one process writes the history"
    measured(f"{world} processes: 1 run")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_killed_run_says_so_and_goes_on_as_the_same(
    endless: Path, measured: Callable[[str], None]
) -> None:
    # the watcher is killed: the process that sends outlives it, and says how the run ended
    name, words = "digits-none-41", ("--strategy", "none", "--seed", "41")
    process = start(endless, *words)
    until(lambda: any("loss/target" in r.data.metrics for r in named(endless, name)), "no metrics")
    process.kill()
    process.wait()
    until(lambda: named(endless, name)[0].info.status == "KILLED", "it is still RUNNING")
    [first] = named(endless, name)
    assert first.data.tags["failure"] == "the process that ran the training was killed"
    until(lambda: not [*(endless / "unsent").iterdir()], "not all of it was sent")

    # both are killed, as by a power cut: the next command that is asked to says it
    process = start(endless, *words)
    until(lambda: named(endless, name)[0].info.status == "RUNNING", "it does not go on")
    [sender] = [pid for pid, c in children(process.pid).items() if "uotft.tracking.sender" in c]
    os.kill(sender, signal.SIGKILL)
    process.kill()
    process.wait()
    [again] = named(endless, name)
    assert (again.info.run_id, again.info.status) == (first.info.run_id, "RUNNING")
    [folder] = (endless / "unsent").iterdir()
    until(lambda: not ranks(endless), "the worker outlived its watcher")
    done = call("uotft", "sync", cwd=endless)
    assert done.stdout == f"{name}: sent\n", done.stderr
    [again] = named(endless, name)
    assert (again.info.run_id, again.info.status) == (first.info.run_id, "KILLED")
    assert not folder.exists()
    measured("watcher killed: KILLED by its sender; both killed: KILLED by uotft sync; one run id")


@pytest.mark.slow
def test_a_run_that_is_being_written_is_left_alone(endless: Path) -> None:
    process = start(endless, "--strategy", "none", "--seed", "42")
    try:
        until(lambda: named(endless, "digits-none-42"), "no run")
        done = call("uotft", "sync", cwd=endless)
        assert done.returncode == 1
        assert "digits-none-42: " in done.stdout
        assert "its training is still running" in done.stdout
        assert named(endless, "digits-none-42")[0].info.status == "RUNNING"
    finally:
        process.terminate()
        process.wait(60)
    assert named(endless, "digits-none-42")[0].info.status == "KILLED"
