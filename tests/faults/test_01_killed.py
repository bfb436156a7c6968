"""Fault 1: SIGKILL at a random step: all processes of a training, 1 or 2, are killed, and the same
command is given again.

Expected: weights, optimiser, random states and metrics end bit-identical to those of a training
without a stop; no more work is lost than lies between two checkpoints.

The bytes are compared by SHA-256.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from support.child_processes import crew, fork, killed, pair
from support.projects import workspace
from support.tiny_training import CELL, EVERY, MADE, STEPS, change, dies_at, left, made, train
from uotft.core import storage
from uotft.core.records import Cell
from uotft.training import checkpoints, state


def start(root: Path, world: int) -> list[int]:
    """Train in ``world`` children, which note each step, and at the end their whole state."""

    def work(rank: int) -> None:
        states, resume = [], state.Keeper.resume
        state.Keeper.resume = lambda *words: (states.append(words[1]), resume(*words))[1]

        at = os.open(root / f"at-{rank}", os.O_CREAT | os.O_WRONLY)

        def progress(steps: range, label: str) -> Iterator[int]:
            for step in steps:
                os.pwrite(
                    at, b"%4d" % step, 0
                )  # at once: a kill leaves the step before, or this one
                yield step

        points = train(root, progress=progress)
        state.write(root / f"end-{rank}.safetensors", states[0])
        storage.write_json(root / f"points-{rank}.json", dict(merged(points)))

    return crew(work, world) if world > 1 else [fork(lambda: work(0))]


def merged(points: list) -> list:
    """Points before the resumed step come as one a step."""
    steps: dict[int, dict] = {}
    for step, numbers in points:
        steps.setdefault(step, {}).update(numbers)
    return sorted(steps.items())


def outcome(root: Path, world: int) -> dict[str, str]:
    """The SHA-256 of all that a training ends with, which is removed."""
    assert not any([killed(pid) for pid in start(root, world)])
    assert not left(root).exists()
    folder = workspace(root).cell("models", Cell(*CELL))
    ends = sorted([*root.glob("end-*"), *root.glob("points-*")])
    assert len(ends) == 2 * world
    files = [*(folder / name for name in MADE), *ends]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    for path in files:
        path.unlink()
    return digests


def step_of(root: Path) -> int:
    """The step that the first process has begun; -1 before."""
    words = (root / "at-0").read_text().split() if (root / "at-0").exists() else []
    return int(words[0]) if words else -1


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_at_a_random_step_it_ends_in_the_same_bytes(
    trainable: Path, world: int, trials: Callable, measured: Callable
) -> None:
    change(trainable, eval_every=6)
    whole, rng, lost = outcome(trainable, world), np.random.default_rng(), []
    model = workspace(trainable).cell("models", Cell(*CELL)) / MADE[1]
    while len(lost) < trials(2, 20):
        (trainable / "at-0").unlink(missing_ok=True)
        children, wanted = start(trainable, world), rng.integers(1, STEPS)
        while step_of(trainable) < wanted:
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.005))
        for number in (signal.SIGSTOP, signal.SIGKILL):  # at once, as a machine that dies
            for pid in children:
                os.kill(pid, number)
        over = all([not killed(pid) for pid in children]) or model.exists()
        if not over:
            found = checkpoints.newest(left(trainable))
            lost.append(step_of(trainable) - (found[1]["step"] if found else 0))
            assert 0 <= lost[-1] <= EVERY
        assert outcome(trainable, world) == whole
    measured(
        f"{world} process{'es' * (world > 1)}: {len(lost)} of {len(lost)} kills, {len(whole)} "
        f"files bit-identical, at most {max(lost)} steps lost; a checkpoint every {EVERY}"
    )


@pytest.mark.parametrize(
    "recipe",
    [{}, pytest.param({"ema": 0.9, "momentum": 0.0, "accumulate": 2}, marks=pytest.mark.slow)],
)
def test_killed_again_and_again_nothing_is_done_twice(trainable: Path, recipe: dict) -> None:
    change(trainable, **recipe)
    points, whole = train(trainable), made(trainable)
    for step, start in ((3, 0), (6, 5), (23, 20)):
        assert killed(fork(lambda at=step: train(trainable, progress=dies_at(at))))
        found = checkpoints.newest(left(trainable))
        assert (found[1]["step"] if found else 0) == start
    ran: list[int] = []

    def count(items: range, label: str) -> range:
        ran.extend(items)
        return items

    expected = merged([p for p in points if p[0] < 20]) + [p for p in points if p[0] >= 20]
    assert train(trainable, progress=count) == expected, "what was logged before is logged again"
    assert ran == list(range(20, STEPS)), "nothing that was done is done again"
    assert made(trainable) == whole
    assert not left(trainable).exists()


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_in_the_same_bytes(
    trainable: Path, trials: Callable, measured: Callable
) -> None:
    """One training, killed often: in imports, validations, writes."""
    change(trainable, checkpoint_every=1)
    begun = time.monotonic()
    train(trainable)
    duration, whole, rng = time.monotonic() - begun, made(trainable), np.random.default_rng()
    kills, wanted = 0, trials(1, 20)
    for _ in range(40 * wanted):
        pid = fork(lambda: train(trainable))
        time.sleep(rng.uniform(0.05, 0.6) * duration)
        os.kill(pid, signal.SIGKILL)
        if killed(pid):
            kills += 1
            continue
        assert made(trainable) == whole
        if kills >= wanted:
            break
    train(trainable)  # goes on with what the last kill has left, if it was not waited for
    assert made(trainable) == whole
    assert kills
    measured(f"{kills} kills at random moments, imports and writes included: bit-identical")


@pytest.mark.slow
def test_two_processes_go_on_to_the_same_bytes(trainable: Path) -> None:
    """Going on starts with a validation, for which each process needs its own batch norm."""
    change(trainable, checkpoint_every=6, eval_every=6)
    assert not any([killed(pid) for pid in pair(lambda rank: train(trainable))])
    whole = made(trainable)
    assert all([
        killed(pid) for pid in pair(lambda rank: train(trainable, progress=dies_at(13)))
    ])  # fmt: skip
    assert checkpoints.newest(left(trainable))[1]["step"] == 12
    assert not any([killed(pid) for pid in pair(lambda rank: train(trainable))])
    assert made(trainable) == whole
