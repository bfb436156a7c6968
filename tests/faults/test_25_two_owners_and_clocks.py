"""Fault 25: two runs in one folder, eight at once, a killed owner; clocks that jump; no free inode;
renames over NFS that report an error though done.

Expected: a run's folder has one owner, and a second run is refused at once with exit code 2 and the
owner's name; the lock ends with its owner; nothing depends on a clock that goes forward; without a
free inode the error says so, and what was saved stays.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.commands import call
from support.projects import runs, workspace
from support.watched_commands import (
    MADE,
    WORDS,
    begun,
    change,
    last,
    left,
    mounted,
    ranks,
    started,
    statuses,
    wait,
    wait_for,
)
from uotft.core import locks, removal, storage
from uotft.core.errors import UserError
from uotft.pipeline.workspace import Workspace
from uotft.runs import job
from uotft.training import checkpoints

Count = Callable[[int, int], int]


@pytest.mark.slow
def test_a_second_run_of_a_cell_is_refused(
    cell: Path, trials: Count, measured: Callable[[str], None]
) -> None:
    """Also `uotft select`, which would change what the first one reads; other cells go on."""
    times, number = [], trials(1, 10)
    with started(cell, *WORDS, "--num-processes", "2") as process:
        wait_for(process, lambda: begun(cell) and len(ranks(cell)) == 2)
        for worker in (there := ranks(cell).values()):
            os.kill(worker, signal.SIGSTOP)  # the cores are for the others; the folder stays theirs
        for _ in range(number):
            begin = time.monotonic()
            done = call("uotft", *WORDS, cwd=cell, DVC_STAGE="train")
            times.append(time.monotonic() - begin)
            assert done.returncode == 2, done.stderr
            folder = cell / "models/digits/uot/0"
            who = f"process {process.pid} on {socket.gethostname()}, since 2"
            assert f"uotft: {folder} is being made: {who}" in done.stderr
            assert "uotft train --dataset digits --strategy uot --seed 0 --num-pr" in done.stderr
        done = call("uotft", "select", *WORDS[1:], cwd=cell)
        assert done.returncode == 2
        assert f"is being made: process {process.pid} on" in done.stderr
        done = call("uotft", "select", *WORDS[1:-1], "1", cwd=cell)
        assert done.returncode == 0, "another cell is free"
        assert process.poll() is None
        for worker in there:
            os.kill(worker, signal.SIGCONT)
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert statuses(cell) == ["KILLED"], "the refused ones made no run"
    measured(f"{number}/{number} refused with exit code 2 and the owner's name after "
             f"{max(times):.1f} s at most")  # fmt: skip


@pytest.mark.parametrize("words", [("pretrain",), ("embed", "--dataset", "digits"),
                                   ("prepare", "--dataset", "digits")])  # fmt: skip
def test_each_stage_has_one_owner(cell: Path, words: tuple[str, ...]) -> None:
    """The lock is held by this process here, as it would be by the same command."""
    ws = workspace(cell)
    with owner_of(ws, words):
        done = call("uotft", *words, cwd=cell)
    assert done.returncode == 2, done.stderr
    assert f"process {os.getpid()} on {socket.gethostname()}, since" in done.stderr
    with owner_of(ws, words):
        pass


def owner_of(ws: Workspace, words: tuple[str, ...]):  # noqa: ANN201
    if words[0] == "prepare":
        return locks.exclusive(ws.root / "cache/.digits.prepare.lock", "busy")
    return job.owning(ws, ws.pretrained() if words[0] == "pretrain" else ws.features("digits"))


def test_of_many_that_begin_at_once_one_wins(
    tmp_path: Path, trials: Count, measured: Callable[[str], None]
) -> None:
    hold = (
        "import sys; from pathlib import Path; from uotft.core import locks\n"
        "with locks.exclusive(Path(sys.argv[1]), 'busy'):\n"
        "    print('mine', flush=True); sys.stdin.read()"
    )
    number = trials(1, 10)
    for trial in range(number):
        words = [sys.executable, "-c", hold, str(tmp_path / f"{trial}.lock")]
        crowd = [
            subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            for _ in range(8)
        ]
        wait(lambda crowd=crowd: sum(p.poll() is None for p in crowd) == 1)
        [winner] = [p for p in crowd if p.poll() is None]
        said = [p.communicate(timeout=60)[0] for p in [p for p in crowd if p is not winner]]
        assert not any(said)
        assert winner.communicate(timeout=60)[0] == b"mine\n"
    measured(f"{number} times 8 processes at once: one owner each time")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_killed_owner_blocks_nobody(
    cell: Path, trials: Count, measured: Callable[[str], None]
) -> None:
    """SIGKILL: the next one waits until its workers have saved and ended, and goes on."""
    number, times = trials(1, 5), []
    for _ in range(number):
        before = last(cell)
        with started(cell, *WORDS) as process:
            wait_for(process, lambda before=before: begun(cell, before))
            [worker] = ranks(cell).values()
            process.kill()
            begin = time.monotonic()
            process.communicate(timeout=60)
            with started(cell, *WORDS) as again:
                wait_for(again, lambda worker=worker: {*ranks(cell).values()} - {worker})
                times.append(time.monotonic() - begin)
                assert worker not in ranks(cell).values(), "two writers at a time"
                again.terminate()
                said, _ = again.communicate(timeout=60)
        assert again.returncode == 130, said
        assert "uotft: going on at step" in said
    measured(f"{number}/{number} go on after SIGKILL of the owner, within {max(times):.1f} s")


def test_the_owner_on_another_machine_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount with locks for each machine alone grants ours: the name is all there is to tell."""
    path = tmp_path / "lock"
    owner = {"pid": 1, "host": "node-7", "started": "2026-01-01", "command": "uotft train"}
    path.write_text(json.dumps(owner))
    with locks.exclusive(path, "busy"):
        assert "process 1 on node-7, since 2026-01-01: uotft train" in caplog.text
    path.write_text(json.dumps(owner))

    def none(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    with pytest.raises(UserError, match="busy: process 1 on node-7"), locks.exclusive(path, "busy"):
        pass
    path.write_text("")
    with locks.exclusive(path, "busy"):
        pass


CLOCK = """\
import os, time
real, real_ns = time.time, time.time_ns
def offset():
    with open(os.environ["TEST_CLOCK"]) as file:
        return int(file.read() or 0)
time.time = lambda: real() + offset()
time.time_ns = lambda: real_ns() + offset() * 10**9
"""


@pytest.mark.slow
def test_clocks_may_jump(cell: Path, measured: Callable[[str], None]) -> None:
    """The clock of all processes is set back by a day, and then by a year, while they train.

    Their `time`, by a sitecustomize.py; libfaketime cannot do it: its sleep fails then.
    """
    change(cell, steps=300)
    plain = call("uotft", *WORDS, cwd=cell, DVC_STAGE="train")
    assert plain.returncode == 0, plain.stderr[-3000:]
    folder = cell / "models/digits/uot/0"
    whole = [(folder / name).read_bytes() for name in MADE]
    shutil.rmtree(folder)
    clock = cell / "clock"
    clock.write_text("0")
    (cell / "site").mkdir()
    (cell / "site/sitecustomize.py").write_text(CLOCK)
    path = os.pathsep.join([str(cell / "site"), os.environ.get("PYTHONPATH", "")])
    with started(cell, *WORDS, PYTHONPATH=path, TEST_CLOCK=str(clock)) as process:
        wait_for(process, lambda: begun(cell))
        clock.write_text(str(-86400))
        time.sleep(0.5)
        clock.write_text(str(-365 * 86400))
        said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said[-3000:]
    assert [(folder / name).read_bytes() for name in MADE] == whole
    assert statuses(cell) == ["FINISHED", "FINISHED"]
    began, ended = (getattr(runs(cell)[0].info, f"{when}_time") for when in ("start", "end"))
    assert ended < began, "the clock was heard of"
    measured("clock set back by a day and a year: the bytes of a steady clock, run FINISHED")


@pytest.mark.slow
def test_a_full_table_of_files(cell: Path, measured: Callable[[str], None]) -> None:
    with (
        mounted(cell / "unfinished", "size=64m,nr_inodes=100"),
        started(cell, *WORDS) as process,
    ):
        wait_for(process, lambda: begun(cell))
        number = 0
        while process.poll() is None:  # whatever becomes free is taken
            try:
                (cell / "unfinished" / f"filler-{number}").touch()
                number += 1
            except OSError:
                time.sleep(0.005)
        said = process.stdout.read()
        assert process.returncode == 2, said[-3000:]
        assert "cannot be written: No space left on device: " in said
        assert " bytes and 0 files are free in" in said
        assert "Traceback" not in said
        found = checkpoints.newest(left(cell))
        assert found is not None, "the checkpoint before is whole"
        for filler in (cell / "unfinished").glob("filler-*"):
            filler.unlink()
        with started(cell, *WORDS) as again:
            wait_for(again, lambda: last(cell) > found[1]["step"])
            again.terminate()
            said, _ = again.communicate(timeout=60)
        assert f"uotft: going on at step {found[1]['step']}" in said
    assert statuses(cell) == ["KILLED"]
    measured("no inode left: error with the path, exit code 2; goes on from the checkpoint before")


def test_a_rename_that_was_done_and_reports_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS: the answer is lost, the request sent again, and the second one finds nothing."""
    path, replace = tmp_path / "a.json", Path.replace
    storage.write_json(path, 1)

    def twice(self: Path, target: Path) -> None:
        replace(self, target)
        replace(self, target)

    monkeypatch.setattr(Path, "replace", twice)
    storage.write_json(path, 2)
    assert storage.read_json(path) == 2

    def never(self: Path, target: Path) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(Path, "replace", never)
    with pytest.raises(OSError, match="Stale"):
        storage.write_json(path, 3)
    assert storage.read_json(path) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_files_that_nfs_keeps_stop_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """.nfs… of a file that is open elsewhere: its folder stays, but is out of the way."""
    folder, unlink = tmp_path / "0", os.unlink
    (folder / "step-000000005").mkdir(parents=True)
    (folder / "step-000000005" / ".nfs001").touch()
    storage.write_json(folder / "run.json", {"run_id": "a"})

    def busy(path: object, **more: object) -> None:
        if ".nfs" in os.fspath(path):
            raise OSError(16, "Device or resource busy")
        unlink(path, **more)

    monkeypatch.setattr(os, "unlink", busy)
    checkpoints.finish(folder)
    assert checkpoints.newest(folder) is None
    removal.remove(folder)
    assert not folder.exists()
    assert list(tmp_path.rglob(".nfs001"))
    monkeypatch.undo()
    folder.mkdir()
    removal.remove(folder)
    assert not list(tmp_path.iterdir()), "the next one takes it along"
