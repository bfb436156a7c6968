"""What earlier stages have made, for later ones; refused when it is not of today's inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uotft.core import storage
from uotft.core.errors import UserError
from uotft.core.records import Cell, ClassBank, ImageSet, SourcePart
from uotft.core.settings import Subset
from uotft.data import subset
from uotft.data.pixel_cache import Store
from uotft.pipeline import freshness, image_places
from uotft.pipeline.workspace import Workspace
from uotft.selection import banks, features, parts


def images(ws: Workspace, dataset: str) -> ImageSet:
    """The prepared images of a data set; those of files are decoded when they are asked for."""
    freshness.check_prepared(ws, dataset)
    found = ws.decoding(dataset, image_places.read(ws, dataset))
    new = isinstance(found.images, Store) and not found.images.there.any()
    if new and found.files is not None and image_places.are_absent(found.files):
        # perhaps DVC has brought data/NAME.npz from another machine, and nothing of cache/
        image_places.bring(ws, dataset)
        found = ws.decoding(dataset, image_places.read(ws, dataset))
    return found


def source(ws: Workspace) -> ImageSet:
    """The source as it is selected from and reused: ``source_fraction`` of a class.

    The rows left out of the training part are in no part.
    """
    found = images(ws, ws.params.source)
    rows, splits = found.rows("train"), found.splits.astype("U10")
    splits[rows] = "unused"
    splits[rows[drawn(ws, found.labels[rows])]] = "train"
    return replace(found, splits=splits)


def drawn(ws: Workspace, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of the source's training images, of ``labels`` (n,), ``source_fraction`` leaves.

    Ascending. The draw has a seed of its own, 0.
    """
    fraction = ws.params.source_fraction
    if fraction == 1:
        return np.arange(len(labels))
    return np.sort(subset.sample(labels, Subset(fraction=fraction), 0))


def pool(ws: Workspace, dataset: str, *, hashed: bool = True) -> dict[str, NDArray[Any]]:
    """The features of a data set, refused when they are not of today's inputs and code."""
    folder, dtype = ws.features(dataset), ws.params.embed.dtype
    found = features.read(folder, hashed=hashed)
    made_of = str(found.get("data", "")), str(found["backbone"])
    freshness.check_features(ws, dataset, folder, *made_of)
    if found["features"].dtype != dtype:
        raise UserError(
            f"{folder} holds {found['features'].dtype}, embed.dtype is {dtype}: run dvc repro"
        )
    return found


def source_bank(ws: Workspace) -> ClassBank:
    """The units that strategies score, refused when params.yaml asks for others."""
    bank = banks.read(ws.embedding(ws.params.source))
    freshness.check_bank(ws, bank)
    return bank


def source_images(ws: Workspace, bank: ClassBank) -> ImageSet:
    """The source whose training images are the bank's, refused when params.yaml means others."""
    images = source(ws)
    freshness.check_source(ws, images, bank)
    return images


def source_part(ws: Workspace, kept: NDArray[np.int64]) -> SourcePart:
    """The training images of the units ``kept``."""
    bank = source_bank(ws)
    return parts.part_of(bank, source_images(ws, bank), kept)


def target_bank(ws: Workspace, target: str, seed: int) -> ClassBank:
    """Class means of the target images that this seed may train on, and of no others."""
    found = pool(ws, target)
    rows = subset.sample(found["labels"], ws.params.subset, seed)
    return parts.target_bank(found, rows, str(ws.embedding(target)))


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
