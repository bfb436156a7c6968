"""Fault 3: SIGKILL while a checkpoint is written: at each file opened, half written, flushed,
renamed and removed, and at each folder made and removed.

Expected: a whole checkpoint after every kill; the partial one is ignored and cleaned; the same
command ends in the bytes of a training without a stop; 0 unusable states in 200 kills.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.child_processes import crew, fork, killed
from support.projects import workspace
from support.tiny_training import CELL, MADE, STEPS, change, die, left, made, train
from uotft.core import storage
from uotft.core.records import Cell
from uotft.training import checkpoints

EVERY = 2
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


class Points:
    """Counts the moments at which the files of ``folder`` change, and dies at number ``last``."""

    def __init__(self, folder: Path, last: float) -> None:
        self.folder, self.last, self.count = str(folder), last, 0
        self.write, self.fsync = storage.write, os.fsync
        storage.write, os.fsync = self.in_halves, self.flushed
        sys.addaudithook(self.hear)

    def pass_(self) -> None:
        self.count += 1
        if self.count == self.last:
            die()

    def hear(self, event: str, words: tuple[Any, ...]) -> None:
        if event not in EVENTS or (event == "open" and "w" not in (words[1] or "")):
            return
        inside = str(words[0]).startswith(self.folder)
        if inside or (event in ("os.remove", "os.rmdir") and words[1] != -1):  # rmtree's, relative
            self.pass_()

    def flushed(self, file: int) -> None:
        self.pass_()
        self.fsync(file)

    def in_halves(self, path: Path, fill: Callable[[Any], object], size: int = 0) -> None:
        def filled(file: Any) -> None:
            fill(file)
            if path.is_relative_to(self.folder):
                file.truncate(file.tell() // 2)
                file.flush()
                self.pass_()
                file.seek(0)
                file.truncate()
                fill(file)

        self.write(path, filled, size)


def start(root: Path, world: int, last: float = float("inf")) -> list[int]:
    """Train in ``world`` children; the first one dies at its point ``last``."""
    # so that each training has as many points: of several children any one may make the folder
    (left(root) if world > 1 else left(root).parent).mkdir(parents=True, exist_ok=True)

    def work(rank: int) -> None:
        points = Points(left(root), last if rank == 0 else float("inf"))

        def progress(steps: range, label: str) -> Iterator[int]:
            for step in steps:
                if rank == 0 and step == steps[0]:
                    there = sorted(p.name for p in left(root).glob("step-*"))
                    whole = [n for n in there if (left(root) / n / checkpoints.STATE).exists()]
                    storage.write_json(root / "resumed.json", [step, there, whole])
                if rank == 0:
                    (root / "at").write_text(str(step))
                yield step

        train(root, progress=progress)
        if rank == 0:
            storage.write_json(root / "points.json", points.count)

    return crew(work, world) if world > 1 else [fork(lambda: work(0))]


def end(children: list[int]) -> bool:
    """Wait for the first child; what kills it ends the others, as the launcher does."""
    dead = killed(children[0])
    for pid in children[1:]:
        if dead:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return dead


@pytest.mark.parametrize(
    ("world", "few", "many"), [(1, 8, 160), pytest.param(2, 2, 40, marks=pytest.mark.slow)]
)
def test_killed_at_any_moment_of_a_write(
    trainable: Path, world: int, few: int, many: int, trials: Callable, measured: Callable
) -> None:
    change(trainable, checkpoint_every=EVERY, eval_every=6)
    assert not end(start(trainable, world))
    whole, points = made(trainable), storage.read_json(trainable / "points.json")
    assert points > 160, "moments at which a kill can come"
    rng, wanted, partial = np.random.default_rng(), trials(few, many), 0
    moments = rng.permutation(points)[:wanted] + 1
    for moment in moments.tolist():
        (trainable / "at").write_text("0")  # until the first step
        assert end(start(trainable, world, moment)), f"moment {moment} of {points}"
        at, folder = int((trainable / "at").read_text()), left(trainable)
        found = checkpoints.newest(folder, pytest.fail)
        step = found[1]["step"] if found else 0
        if not (workspace(trainable).cell("models", Cell(*CELL)) / MADE[1]).exists():
            assert at - EVERY <= step <= at, "the checkpoint before, or the one that was written"
        partial += any(not (p / checkpoints.STATE).exists() for p in folder.glob("step-*"))
        assert not end(start(trainable, world)), f"unusable after moment {moment}"
        resumed, there, kept = storage.read_json(trainable / "resumed.json")
        assert (resumed, there) == (step, kept), "the partial one is cleaned"
        assert len(there) <= checkpoints.KEPT + 1, "the oldest one had still to be removed"
        assert made(trainable) == whole
        assert not [p for p in (trainable / "unfinished").rglob("*") if p.is_file()]
    measured(
        f"{world} process{'es' * (world > 1)}, {len(moments)} kills at {points} moments of "
        f"{STEPS // EVERY - 1} checkpoints, {partial} of which left a partial one: all cleaned, "
        f"0 unusable, {len(moments)}/{len(moments)} bit-identical"
    )
