"""How many images a training reads, on which its time depends."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uotft.core import config, storage
from uotft.core.records import Cell
from uotft.data import subset
from uotft.pipeline.workspace import Workspace
from uotft.training import objectives


def of(ws: Workspace, cell: Cell) -> int:
    """The images that the training of a cell reads, whose data are prepared."""
    data = storage.need(ws.data(cell.target))
    per_class = _per_class(data, data.stat().st_mtime_ns)
    return images(ws, cell.strategy, int(subset.sizes(per_class, ws.params.subset, 0).sum()))


def images(ws: Workspace, strategy: str, labelled: int) -> int:
    """The images that a training on so many ``labelled`` ones of the target reads."""
    params = ws.of(strategy).params
    # as in training: epochs become steps by the number of labelled images
    recipe = objectives.recipe(params.train, labelled)
    batch = config.images_a_step(params, keeps=config.keeps(params, strategy))
    head = params.train.head_steps * params.train.target_batch
    return recipe.steps * recipe.accumulate * batch + head


@cache
def _per_class(data: Path, modified: int) -> NDArray[np.int64]:
    """The number of training images of each class of a data set, read once a command."""
    found = storage.read_images(data)
    return np.bincount(found.labels[found.rows("train")])
