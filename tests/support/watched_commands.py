"""Commands as a user starts them in a small workspace, watched from outside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import pytest

from support.commands import users_environment
from support.projects import tiny_params, workspace, write_params
from support.stages import find_overlap
from uotft.core.records import Cell

CELL = ("digits", "uot", 0)
WORDS = ("train", "--dataset", "digits", "--strategy", "uot", "--seed", "0")
MADE = ("model.safetensors", "model.json", "history.csv")


def ready(tiny: Path, folder: Path) -> Path:
    """A copy of ``tiny`` with a selection to train on, and MLflow's database, which takes long."""
    from uotft.pipeline import select
    from uotft.tracking import store

    project = Path(shutil.copytree(tiny, folder))
    find_overlap(project)
    select.select(workspace(project), Cell(*CELL))
    store.make_store(project)
    return project


def change(project: Path, **recipe: object) -> None:
    """A long training with a checkpoint and a line every 20 steps, and these settings."""
    params = tiny_params()
    long = {"steps": 1_000_000, "log_every": 20, "eval_every": 0, "checkpoint_every": 20}
    params["train"]["recipe"] |= long | recipe
    write_params(project, params)


def start(project: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`uotft WORDS` as DVC starts it, which has brought up to date what is upstream."""
    return subprocess.Popen(
        [sys.executable, "-m", "uotft", *arguments],
        cwd=project,
        env=users_environment() | {"DVC_STAGE": arguments[0]} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextmanager
def started(project: Path, *arguments: str, **environment: str):  # noqa: ANN201
    """The same, killed at the end of the block if it is still there."""
    process = start(project, *arguments, **environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=60)
            wait(lambda: not inside(project), 60)
        process.stdout.close()


def inside(project: Path) -> list[int]:
    """The processes that work in this folder or below."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            where = Path(os.readlink(process / "cwd"))
            zombie = "\nState:\tZ" in (process / "status").read_text()
        except OSError:
            continue
        if where.is_relative_to(project) and not zombie:
            found.append(int(process.name))
    return sorted(found)


def running(project: Path, word: str) -> list[int]:
    """Those of them that have this word in their command line."""
    return [pid for pid in inside(project) if word.encode() in _said_by(pid, "cmdline")]


def ranks(project: Path) -> dict[int, int]:
    """{rank: process} of the training processes."""
    found = {}
    for pid in running(project, "uotft.runs.worker"):
        rank = [int(e[5:]) for e in _said_by(pid, "environ") if e.startswith(b"RANK=")]
        found[rank[0] if rank else 0] = pid
    return found


def _said_by(pid: int, file: str) -> list[bytes]:
    """The entries of a file of a process; none if it has just ended."""
    with suppress(OSError):
        return Path("/proc", str(pid), file).read_bytes().split(b"\0")
    return []


def wait(until: Callable[[], object], seconds: float = 120) -> None:
    """Wait for something to be true."""
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for(
    process: subprocess.Popen[str], until: Callable[[], object], seconds: float = 120
) -> None:
    """The same, as long as the process lives."""

    def either() -> bool:
        done = bool(until())
        assert done or process.poll() is None, process.stdout.read()
        return done

    wait(either, seconds)


@cache  # those who wait ask twenty times a second, and reading params.yaml takes 5 ms
def left(project: Path) -> Path:
    """The folder of the training that has not finished."""
    ws = workspace(project)
    return ws.unfinished(ws.cell("models", Cell(*CELL)))


def saved(project: Path) -> list[int]:
    """The steps of the checkpoints that are whole, as far as their names go."""
    found = left(project).glob("step-*/state.json")
    return sorted(int(path.parent.name.removeprefix("step-")) for path in found)


def last(project: Path) -> int:
    """The step of the last of them; 0 without any."""
    return max(saved(project), default=0)


def begun(project: Path, after: int = 0) -> bool:
    """Whether the training is tracked and has a checkpoint of a step after this one."""
    return (left(project) / "run.json").is_file() and last(project) > after


def statuses(project: Path) -> list[str]:
    """How the runs of the training stand, by MLflow."""
    from support.projects import runs

    return [run.info.status for run in runs(project)]


def temporary(project: Path) -> list[str]:
    """Files and folders that a command has left half done."""
    marks = (".tmp", ".part", ".gone")
    return [str(path) for path in project.rglob("*") if path.name.endswith(marks)]


@contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """A file system of its own at ``place``, with what stands there copied into it."""
    place.mkdir(parents=True, exist_ok=True)
    arguments = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(arguments, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
