"""Fault 26: numbers of images that processes and batches do not divide: 1 to 101 images, batches of
1 to 512, 2 to 4 processes.

Expected: each image is answered exactly once; the confusion matrix sums to the number of images and
is that of one process.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from support.child_processes import crew, forget_accelerator, fork, killed
from support.projects import tiny_params, workspace, write_params
from support.tiny_training import CELL, MADE, train
from uotft.core import storage
from uotft.core.context import Context
from uotft.core.records import Cell
from uotft.models import model_io
from uotft.models.inputs import Views
from uotft.pipeline import readers
from uotft.training import evaluation, runtime

CLASSES = 10


def spread(work: Callable[[int], None], world: int) -> None:
    """Do ``work(rank)`` in ``world`` children."""
    children = crew(work, world) if world > 1 else [fork(lambda: work(0))]
    assert not any([killed(pid) for pid in children])


@pytest.mark.parametrize(
    "world", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_every_image_is_answered_once(
    trainable: Path, world: int, trials: Callable, measured: Callable
) -> None:
    """Fewer images than processes, prime numbers of them, batches of one and of more than all."""
    train(trainable)
    ws = workspace(trainable)
    images, folder = readers.images(ws, "digits"), ws.cell("models", Cell(*CELL))
    rows = images.rows("test")[:101]
    cases = [(1, 7), (2, 7), (97, 7), (101, 8), (100, 512)]
    if trials(0, 1):
        cases = [(n, size) for n in (1, 2, 3, 4, 5, 11, 97, 100, 101) for size in (1, 2, 7, 8, 512)]

    def answers() -> dict[str, NDArray[np.int64]]:
        forget_accelerator()
        accelerator = runtime.start(0, 1)
        network, _ = model_io.read(folder)
        return {
            f"{n} in {size}": evaluation.confusion(
                network, Views(images, rows[:n]), images.labels[rows[:n]], Context(accelerator),
                classes=CLASSES, batch_size=size,
            )
            for n, size in cases
        }  # fmt: skip

    spread(
        lambda rank: storage.write_arrays(trainable / f"answers-{world}-{rank}.npz", **answers()),
        world,
    )
    alone = answers()
    forget_accelerator()
    for rank in range(world):
        found = storage.read_arrays(trainable / f"answers-{world}-{rank}.npz")
        for (n, size), (name, one) in zip(cases, alone.items(), strict=True):
            assert one.sum() == found[name].sum() == n, (n, size)
            assert np.array_equal(found[name], one), (n, size)
    uneven = sum(n % (world * size) != 0 for n, size in cases)
    measured(f"{world} processes: {len(cases)} cases, {uneven} of them uneven: sums exact, "
             "matrices those of one process")  # fmt: skip


def test_validation_in_training_counts_every_image_once(
    trainable: Path, measured: Callable
) -> None:
    """100 images on 1, 2, 3 and 4 processes: before the first step all have the same weights.

    What the last validation says is what one process finds with the weights that were written.
    """
    params = tiny_params()
    params["train"] |= {"target_batch": 12, "source_batch": 12}
    write_params(trainable, params)
    ws = workspace(trainable)
    images, folder = readers.images(ws, "digits"), ws.cell("models", Cell(*CELL))
    [*rows] = images.rows("val")
    assert len(rows) == 100, "no multiple of 3 processes, nor of batches of 7"

    def work(rank: int) -> None:
        found, confusion = [], evaluation.confusion

        def noted(*words: object, **more: object) -> NDArray[np.int64]:
            found.append(confusion(*words, **more, batch_size=7))
            return found[-1]

        evaluation.confusion = noted
        train(trainable)
        storage.write_arrays(trainable / f"found-{rank}.npz", found=np.array(found))

    first = []
    for world in (1, 2, 3, 4):
        spread(work, world)
        each = [storage.read_arrays(trainable / f"found-{r}.npz")["found"] for r in range(world)]
        assert all(np.array_equal(found, each[0]) for found in each)
        assert each[0].sum((1, 2)).tolist() == [100] * 3, "steps 0, 6 and 12"
        first.append(each[0][0])
        forget_accelerator()
        network, facts = model_io.read(folder)
        views, context = Views(images, np.array(rows)), Context(runtime.start(0, 1))
        labels = images.labels[rows]
        alone = evaluation.confusion(network, views, labels, context, classes=CLASSES)
        forget_accelerator()
        assert np.array_equal(each[0][-1], alone), world
        assert facts["validation"]["val/top1"] == pytest.approx(100 * np.trace(alone) / 100)
        for name in MADE:
            (folder / name).unlink()
    assert all(np.array_equal(one, first[0]) for one in first)
    measured("validation of 100 images on 1, 2, 3, 4 processes in batches of 7: 12 matrices sum "
             "to 100, the first ones equal, the last ones those of one process")  # fmt: skip
