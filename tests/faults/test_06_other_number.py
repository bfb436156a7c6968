"""Fault 6: another number of processes goes on with a training, half-way: 1 after 2, 4 after 1.

Expected: the same order of images; losses within 1e-5 of those without a stop, where the network
has no batch norm.

With batch norm each process takes the statistics of its share of a batch. So another number is
another training, and a line says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from support.child_processes import crew, fork, killed
from support.projects import tiny_params, workspace, write_params
from support.stages import find_overlap, up_to_units
from support.tiny_training import CELL, STEPS, change, left, train
from uotft.core import storage
from uotft.core.errors import Interrupted
from uotft.core.records import Cell
from uotft.core.settings import Augment
from uotft.pipeline import readers, select
from uotft.training import checkpoints
from uotft.training.streams import Batch, Sampling, Stream

STOP = 11
LINE = "the order of the images stays the same"
NORM = "with batch norm the weights will equal those of no uninterrupted"


@pytest.fixture(scope="session")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny workspace with a vision transformer of timm, whose layers normalise each image."""
    pytest.importorskip("timm")
    root = tmp_path_factory.mktemp("transformer")
    params = tiny_params()
    params["backbone"] = {"name": "timm", "model": "test_vit", "image_size": 16, "weights": "none"}
    write_params(root, params)
    up_to_units(root)
    find_overlap(root)
    return root


def work(root: Path, world: int, *, stop_at: int = STEPS) -> dict[int, dict[str, float]]:
    """Train in ``world`` children that are asked to stop in a step; returns the points of one.

    Each writes down the rows of every batch that it takes.
    """

    def one(rank: int) -> None:
        taken, batch, begun = [], Stream.__getitem__, []

        def note(self: Stream, step: int) -> Batch:
            mine = self.rows(step)[self.share].tolist()
            taken.append([self.key[1], self.view, step, mine])
            return batch(self, step)

        def progress(steps: range, label: str) -> range:
            for step in steps:
                begun.append(step)
                yield step

        Stream.__getitem__, points = note, []
        with suppress(Interrupted):
            last = [stop_at - 1] if stop_at < STEPS else None  # else the whole training
            points = train(root, progress=progress, stop=lambda: begun[-1:] == last)
        # a batch that is made ahead of the step that it is for is not taken
        taken = [entry for entry in taken if entry[2] < stop_at]
        storage.write_json(root / f"taken-{world}-{rank}-{stop_at}.json", taken)
        if rank == 0:
            storage.write_json(root / "points.json", points)

    children = crew(one, world) if world > 1 else [fork(lambda: one(0))]
    assert not any([killed(pid) for pid in children])
    points: dict[int, dict[str, float]] = {}
    for step, numbers in storage.read_json(root / "points.json"):
        points.setdefault(step, {}).update(numbers)
    return points


def taken(root: Path, world: int, stop_at: int = STEPS) -> dict[tuple[int, int], list[int]]:
    """{(stream, step): the rows of all processes, in order of rank}; removed."""
    found: dict[tuple[int, int], list[int]] = {}
    for rank in range(world):
        path = root / f"taken-{world}-{rank}-{stop_at}.json"
        for stream, _, step, rows in storage.read_json(path):
            assert len(rows) * world == 8, "an equal share"
            found.setdefault((stream, step), []).extend(rows)
        path.unlink()
    return found


def difference(one: dict, other: dict, name: str) -> float:
    """The largest over all steps."""
    steps = [step for step in one if name in one[step]]
    assert len(steps) >= STEPS // 6
    return max(abs(one[step][name] - other[step][name]) for step in steps)


@pytest.mark.parametrize(("first", "then"), [(2, 1), pytest.param(1, 4, marks=pytest.mark.slow)])
def test_without_batch_norm_losses_are_those_without_a_stop(
    transformer: Path,
    tmp_path: Path,
    first: int,
    then: int,
    capfd: pytest.CaptureFixture[str],
    measured: Callable,
) -> None:
    root = Path(shutil.copytree(transformer, tmp_path / "project"))
    params = tiny_params() | {"backbone": workspace(root).params.backbone}
    params["train"]["recipe"] |= {
        "steps": STEPS, "log_every": 1, "eval_every": 6, "checkpoint_every": 0,
        "learning_rate": 0.01,  # so that rounding, the only difference, stays small
    }  # fmt: skip
    write_params(root, params)
    select.select(workspace(root), Cell(*CELL))
    whole, order = work(root, 1), taken(root, 1)
    assert sorted({step for _, step in order}) == list(range(STEPS))
    capfd.readouterr()
    work(root, first, stop_at=STOP)
    found = checkpoints.newest(left(root))
    assert found is not None
    assert (found[1]["step"], found[1]["processes"]) == (STOP, [first])
    points, before = work(root, then), taken(root, first, STOP)
    said = capfd.readouterr().err
    assert f"was saved by {first} processes, and {then} resume from it: {LINE}\n" in said
    after = taken(root, then)
    assert not before.keys() & after.keys()
    assert before | after == order, "the same log of rows"
    assert points.keys() == whole.keys()
    losses = max(difference(whole, points, f"loss/{name}") for name in ("target", "source"))
    assert losses < 1e-5
    assert difference(whole, points, "val/top1") == 0
    measured(f"{first} -> {then}: {len(order)} batches in the same order, losses of {STEPS} steps "
             f"within {losses:.1e}")  # fmt: skip


@pytest.mark.parametrize(("first", "then"), [(2, 1), pytest.param(1, 4, marks=pytest.mark.slow)])
def test_with_batch_norm_it_goes_on_and_says_what_that_means(
    trainable: Path, first: int, then: int, capfd: pytest.CaptureFixture[str], measured: Callable
) -> None:
    change(trainable, checkpoint_every=0)
    whole = {world: (work(trainable, world), taken(trainable, world)) for world in (first, then)}
    capfd.readouterr()
    work(trainable, first, stop_at=STOP)
    points = work(trainable, then)
    order = taken(trainable, first, STOP) | taken(trainable, then)
    said = capfd.readouterr().err
    assert f"was saved by {first} processes, and {then} resume from it: {LINE}, but {NORM}" in said
    assert "set aside" not in said
    model = workspace(trainable).cell("models", Cell(*CELL)) / "model.json"
    assert storage.read_json(model)["processes"] == [first, then], "not that of one number"
    assert order == whole[first][1] == whole[then][1], "the same log of rows"
    apart = {world: difference(points, whole[world][0], "loss/target") for world in (first, then)}
    numbers = difference(whole[first][0], whole[then][0], "loss/target")
    before = {step: whole[first][0][step] for step in range(STOP)}
    assert difference(before, points, "loss/target") == 0, "what was done stays"
    assert all(0 < value < 2 * numbers for value in apart.values())
    measured(
        f"{first} -> {then} with batch norm: target losses within {max(apart.values()):.2f} of "
        f"those of either number without a stop, which differ by {numbers:.2f}"
    )


@pytest.mark.parametrize("world", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_rows_of_a_step_do_not_know_the_number_of_processes(
    trainable: Path, world: int
) -> None:
    """What each process really took of each batch, put together by rank, is the order of one."""
    work(trainable, world)
    order = taken(trainable, world)
    for name, n in rows_of(trainable).items():
        images, labels = np.zeros((n, 1, 1), np.uint8), np.zeros(n, int)
        stream = Stream(images, labels, Sampling(name, 8, 0, Augment()))
        for step in range(STEPS):
            rows = order.pop((stream.key[1], step))
            assert rows == stream.rows(step).tolist()
    assert not order


def rows_of(root: Path) -> dict[str, int]:
    """How many images the two streams of the tiny training have."""
    ws = workspace(root)
    chosen = readers.read_selection(ws, Cell(*CELL))
    kept = np.array([c["row"] for c in chosen["classes"]])
    classes = len(readers.images(ws, "digits").names)
    return {
        "target": classes * ws.params.subset.shots,
        "source": len(readers.source_part(ws, kept).rows),
    }
