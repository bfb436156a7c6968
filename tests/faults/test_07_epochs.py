"""Fault 7: a training is stopped twice within an epoch, and exactly between two epochs, by a stop
and by SIGKILL.

Expected: in the log of all rows that training takes, no row is there twice and none is missing.

Every epoch is each image once, in the order of a training without a stop.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from support.child_processes import crew, fork, killed
from support.projects import tiny_params, workspace, write_params
from support.tiny_training import left, made, train
from uotft.core.errors import Interrupted
from uotft.pipeline import readers
from uotft.training import checkpoints, loop
from uotft.training.streams import Batch, Stream

STEPS, BATCH, IMAGES = 24, 4, 20  # labelled images of the target: an epoch is five steps
EPOCH = IMAGES // BATCH


@pytest.fixture
def epochs(trainable: Path) -> Path:
    params = tiny_params()
    params["train"] |= {"target_batch": BATCH, "source_batch": BATCH}
    params["train"]["recipe"] |= {"steps": STEPS, "log_every": 1, "checkpoint_every": 2}
    write_params(trainable, params)
    ws = workspace(trainable)
    assert len(readers.images(ws, "digits").names) * ws.params.subset.shots == IMAGES
    return trainable


def work(root: Path, world: int, stop_at: int = STEPS, *, kill: bool = False) -> None:
    """Train in ``world`` children until they have done ``stop_at`` steps: asked to stop, or killed.

    Each adds a line [stream, step, rows] to its log when the loop takes a batch.
    """

    def one(rank: int) -> None:
        log = (root / f"rows-{rank}.jsonl").open("a")
        ahead, make, begun, rows = loop.ahead, Stream.__getitem__, [], {}

        def noted(self: Stream, step: int) -> Batch:
            batch, mine = make(self, step), self.rows(step)[self.share]
            assert torch.equal(batch.labels, self.labels[torch.as_tensor(mine)])
            rows[id(batch)] = self.origin[mine].tolist()
            return batch

        def consumed(make: Callable, steps: Iterable[int]) -> Iterator[dict[str, Batch]]:
            for step, batches in zip(steps, ahead(make, steps), strict=True):
                for name, batch in batches.items():
                    print(json.dumps([name, step, rows[id(batch)]]), file=log, flush=True)  # noqa: T201
                yield batches

        def progress(steps: range, label: str) -> Iterator[int]:
            for step in steps:
                if kill and step == stop_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                begun.append(step)
                yield step

        loop.ahead, Stream.__getitem__ = consumed, noted
        asked = not kill and stop_at < STEPS
        with suppress(Interrupted):
            train(root, progress=progress, stop=lambda: asked and begun[-1:] == [stop_at - 1])

    children = crew(one, world) if world > 1 else [fork(lambda: one(0))]
    assert [killed(pid) for pid in children] == [kill] * world


def log_of(root: Path, world: int) -> list[tuple[str, int, list[int]]]:
    """The lines of all processes, put together; removed."""
    paths = [root / f"rows-{rank}.jsonl" for rank in range(world)]
    lines = [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]
    for path in paths:
        path.unlink()
    whole = []
    for together in zip(*lines, strict=True):
        [(name, step)] = {(name, step) for name, step, _ in together}
        whole.append((name, step, [row for _, _, rows in together for row in rows]))
    return whole


# twice within the first epoch, exactly between the first two, between others, within the last
PLACES = [2, 4, EPOCH, 2 * EPOCH, 2 * EPOCH + 1, 4 * EPOCH, STEPS - 1]


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kill", [False, True])
def test_no_row_is_taken_twice_and_none_is_missing(
    epochs: Path, world: int, kill: bool, trials: Callable, measured: Callable
) -> None:
    work(epochs, world)
    expected, whole = log_of(epochs, world), made(epochs)
    places, log, lost = PLACES[: trials(3, len(PLACES))], [], 0
    for place in places:
        work(epochs, world, place, kill=kill)
        log += log_of(epochs, world)
        found = checkpoints.newest(left(epochs))
        step = found[1]["step"] if found else 0
        assert step == (place if not kill else (place - 1) // 2 * 2)
        # what was done after the last checkpoint is lost with the weights that it made
        kept = [entry for entry in log if entry[1] < step]
        lost, log = lost + len(log) - len(kept), kept
    work(epochs, world)
    log += log_of(epochs, world)
    assert bool(lost) == kill, "asked to stop, nothing at all is done twice"
    assert log == expected
    assert made(epochs) == whole
    rows = [row for name, _, rows in log if name == "target" for row in rows]
    for start in range(0, len(rows) - IMAGES + 1, IMAGES):
        assert len({*rows[start : start + IMAGES]}) == IMAGES, "an epoch is every image once"
    assert len(rows) == STEPS * BATCH
    measured(
        f"{'kills' if kill else 'stops'}, {world} process{'es' * (world > 1)}: {len(places)} in "
        f"{STEPS // EPOCH} epochs, of {2 * len(rows)} rows 0 twice, 0 missing"
    )
