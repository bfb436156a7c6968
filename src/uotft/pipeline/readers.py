"""What earlier stages have made, for later ones; refused when it is not of today's inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from uotft.core import storage
from uotft.core.records import Cell, ClassBank, ImageSet, SourcePart
from uotft.data import subset
from uotft.pipeline import freshness
from uotft.pipeline.workspace import Workspace
from uotft.selection import banks, parts


def source_bank(ws: Workspace) -> ClassBank:
    """The units that strategies score, refused when params.yaml asks for others."""
    bank = banks.read(ws.embedding(ws.params.source))
    freshness.check_bank(ws, bank)
    return bank


def source_images(ws: Workspace, bank: ClassBank) -> ImageSet:
    """The source whose training images are the bank's, refused when params.yaml means others."""
    images = ws.source()
    freshness.check_source(ws, images, bank)
    return images


def source_part(ws: Workspace, kept: NDArray[np.int64]) -> SourcePart:
    """The training images of the units ``kept``."""
    bank = source_bank(ws)
    return parts.part_of(bank, source_images(ws, bank), kept)


def target_bank(ws: Workspace, target: str, seed: int) -> ClassBank:
    """Class means of the target images that this seed may train on, and of no others."""
    pool = ws.pool(target)
    drawn = subset.draw(pool["labels"], ws.params.subset, seed)
    return parts.target_bank(pool, drawn, str(ws.embedding(target)))


def read_selection(ws: Workspace, cell: Cell) -> dict[str, Any]:
    """A selection.json, refused when its embeddings, images or settings are not today's."""
    chosen: dict[str, Any] = storage.read_json(ws.cell("selections", cell) / "selection.json")
    freshness.check_selection(ws, cell, chosen)
    return chosen


def read_overlap(ws: Workspace, target: str) -> dict[str, NDArray[np.int64]]:
    """{side: rows of images that are on both sides}, ascending."""
    found: dict[str, Any] = storage.read_json(ws.overlap(target))
    freshness.check_overlap(ws, target, found)
    return {
        side: np.array(sorted({match[side] for match in found["matches"]}), np.int64)
        for side in ("source", "target")
    }
