"""Fault 24: a worker is killed for want of memory, while it starts and in training, beside a rank
that hangs; the watcher is killed; RLIMIT_AS; /dev/shm is full.

Expected: in less than 60 s the main process has named the worker, the signal and what to do, and
ends with exit code 137; no process is left; the run is FAILED.

Nothing of ours lies in shared memory (no DataLoader has workers here), so a full one stops nothing.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.commands import users_environment
from support.watched_commands import (
    CELL,
    WORDS,
    begun,
    change,
    inside,
    last,
    ranks,
    saved,
    started,
    statuses,
    wait,
    wait_for,
)
from uotft.core.signals import GRACE_S

Count = Callable[[int, int], int]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("when", [pytest.param("starting", marks=pytest.mark.slow), "training"])
def test_a_killed_worker_is_named(
    cell: Path, world: int, when: str, trials: Count, measured: Callable[[str], None]
) -> None:
    """While they start, too, and the others wait for it; these have nothing to save."""
    number, times = trials(1, 5), []
    if world != 2 and not trials(0, 1):
        pytest.skip("as two; make faults does all")
    for _ in range(number):
        before = saved(cell)
        with started(cell, *WORDS, "--num-processes", str(world)) as process:
            wait_for(process, lambda: len(ranks(cell)) == world)
            if when == "training":
                wait_for(process, lambda before=before: saved(cell)[-1:] > before[-1:])
            rank, pid = random.choice([*ranks(cell).items()])
            os.kill(pid, signal.SIGKILL)
            begin = time.monotonic()
            said, _ = process.communicate(timeout=90)
        times.append(time.monotonic() - begin)
        assert not inside(cell)
        assert process.returncode == 128 + signal.SIGKILL, said[-3000:]
        who = "the worker" if world == 1 else f"worker {rank} of them"
        assert f"uotft: {who}, process {pid}, was ended by SIGKILL: most often memory" in said
        assert "use fewer --num-processes or smaller batches" in said
        assert bool(saved(cell)) == (when == "training"), "what was saved is there"
    assert max(times) < (60 if when == "training" else GRACE_S)
    assert statuses(cell) == ["FAILED"]
    measured(f"{when}, world {world}: {number}/{number} named, exit code 137, nobody left after "
             f"at most {max(times):.1f} s")  # fmt: skip


@pytest.mark.slow
def test_a_rank_that_hangs_is_ended_with_the_others(
    cell: Path, measured: Callable[[str], None]
) -> None:
    """One rank is killed; the other one hears no SIGTERM, and the main process kills it, too."""
    with started(cell, *WORDS, "--num-processes", "2") as process:
        wait_for(process, lambda: begun(cell) and len(ranks(cell)) == 2)
        there = ranks(cell)
        os.kill(there[1], signal.SIGSTOP)
        os.kill(there[0], signal.SIGKILL)
        begin = time.monotonic()
        said, _ = process.communicate(timeout=90)
    took = time.monotonic() - begin
    assert not inside(cell)
    assert GRACE_S <= took < 60, "it had its time"
    assert process.returncode == 137
    assert f"uotft: worker 0 of them, process {there[0]}, was ended by SIGKILL" in said
    assert statuses(cell) == ["FAILED"]
    measured(f"rank killed beside one that hangs: named, exit code 137, nobody left after "
             f"{took:.1f} s")  # fmt: skip


@pytest.mark.slow
def test_ranks_do_not_outlive_their_parent(cell: Path, measured: Callable[[str], None]) -> None:
    """The main process is killed: the kernel asks both ranks to stop, which save one step."""
    with started(cell, *WORDS, "--num-processes", "2") as process:
        wait_for(process, lambda: begun(cell) and len(ranks(cell)) == 2)
        before = last(cell)
        os.kill(process.pid, signal.SIGKILL)
        begin = time.monotonic()
        process.communicate(timeout=60)
        wait(lambda: not inside(cell), 60)
    took = time.monotonic() - begin
    assert last(cell) > before
    measured(f"main process killed: both ranks saved and ended after {took:.1f} s")


@pytest.mark.slow
def test_memory_that_a_limit_refuses(
    cell: Path, measured: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """RLIMIT_AS, set on the running worker at what it has: the next large tensor is refused."""
    # glibc's default, set by the user: else a worker keeps its memory, and asks for no more
    monkeypatch.setenv("MALLOC_TOP_PAD_", "131072")
    with started(cell, *WORDS) as process:
        wait_for(process, lambda: begun(cell) and len(ranks(cell)) == 1)
        [pid] = ranks(cell).values()
        begin = time.monotonic()
        resource.prlimit(pid, resource.RLIMIT_AS, (2**20, 2**20))
        said, _ = process.communicate(timeout=90)
    took = time.monotonic() - begin
    assert process.returncode == 1, said[-3000:]
    assert "uotft: out of memory: " in said
    assert "use fewer --num-processes or smaller batches in params.yaml" in said
    assert "Traceback" not in said
    assert not inside(cell)
    assert took < 60
    assert statuses(cell) == ["FAILED"]
    measured(f"RLIMIT_AS: said after {took:.1f} s, exit code 1, run FAILED")


@pytest.mark.slow
def test_shared_memory_is_not_used(
    cell: Path, trials: Count, measured: Callable[[str], None]
) -> None:
    """Two ranks train to the end where /dev/shm holds one page and is full."""
    if not trials(0, 1):
        pytest.skip("make faults does it")
    full = "mount -t tmpfs -o size=4k tmpfs /dev/shm && head -c 4096 /dev/zero > /dev/shm/full"
    if subprocess.run(["unshare", "-m", "sh", "-c", full], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    change(cell, steps=10)
    command = f"{full} && exec {sys.executable} -m uotft {' '.join(WORDS)} --num-processes 2"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command], cwd=cell, capture_output=True, text=True,
        env=users_environment() | {"DVC_STAGE": "train"}, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert statuses(cell) == ["FINISHED"]
    wait(lambda: not inside(cell), 10)
    assert CELL[0] in done.stdout
    measured("/dev/shm full: two ranks train to the end")
