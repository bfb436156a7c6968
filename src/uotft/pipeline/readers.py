"""Reads the outputs of earlier stages; refuses those made of other inputs than today's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
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
    """The prepared images of a data set; image files are decoded on first use."""
    freshness.check_prepared(ws, dataset)
    found = ws.decoding(dataset, image_places.read(ws, dataset))
    new = isinstance(found.images, Store) and not found.images.there.any()
    if new and found.files is not None and image_places.are_absent(found.files):
        # perhaps DVC has fetched data/NAME.npz from another machine, but not cache/
        image_places.bring(ws, dataset)
        found = ws.decoding(dataset, image_places.read(ws, dataset))
    return found


def source(ws: Workspace) -> ImageSet:
    """The source for selection and reuse: ``source_fraction`` of each class.

    The other training images get the split "unused".
    """
    found = images(ws, ws.params.source)
    rows, splits = found.rows("train"), found.splits.astype("U10")
    splits[rows] = "unused"
    splits[rows[sampled(ws, found.labels[rows])]] = "train"
    return replace(found, splits=splits)


def sampled(ws: Workspace, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows of the source's training images that ``source_fraction`` keeps, ascending.

    ``labels`` (n,) are those of all its training images. The sample has a seed of its own, 0.
    """
    fraction = ws.params.source_fraction
    if fraction == 1:
        return np.arange(len(labels))
    return np.sort(subset.sample(labels, Subset(fraction=fraction), 0))


def pool(ws: Workspace, dataset: str, *, hashed: bool = True) -> dict[str, NDArray[Any]]:
    """The features of a data set. Raises `UserError` unless made of today's inputs and code."""
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
    """The units that strategies score. Raises `UserError` if params.yaml asks for others."""
    bank = banks.read(ws.embedding(ws.params.source))
    freshness.check_bank(ws, bank)
    return bank


def source_images(ws: Workspace, bank: ClassBank) -> ImageSet:
    """The source images of the bank. Raises `UserError` if params.yaml means others."""
    images = source(ws)
    freshness.check_source(ws, images, bank)
    return images


def source_part(ws: Workspace, kept: NDArray[np.int64]) -> SourcePart:
    """The training images of the units ``kept``."""
    bank = source_bank(ws)
    return parts.part_of(bank, source_images(ws, bank), kept)


def target_bank(ws: Workspace, target: str, seed: int) -> ClassBank:
    """Class means of the target images that this seed trains on, and of no others."""
    found = pool(ws, target)
    rows = subset.sample(found["labels"], ws.params.subset, seed)
    return parts.target_bank(found, rows, str(ws.embedding(target)))


def labelled_features(
    ws: Workspace, target: str, seed: int
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """What heads read of the target images that this seed trains on: (n, D); and labels (n,)."""
    found = pool(ws, target)
    rows = subset.sample(found["labels"], ws.params.subset, seed)
    return found["trunk" if "trunk" in found else "features"][rows], found["labels"][rows]


def read_selection(ws: Workspace, cell: Cell) -> dict[str, Any]:
    """A selection.json. Raises `UserError` unless its inputs and settings are today's."""
    chosen: dict[str, Any] = storage.read_json(ws.cell("selections", cell) / "selection.json")
    freshness.check_selection(ws, cell, chosen)
    return chosen


def read_overlap(ws: Workspace, target: str) -> dict[str, NDArray[np.int64]]:
    """{source, target: ascending rows of the images that are on both sides}."""
    found: dict[str, Any] = storage.read_json(ws.overlap(target))
    freshness.check_overlap(ws, target, found)
    return {
        side: np.array(sorted({match[side] for match in found["matches"]}), np.int64)
        for side in ("source", "target")
    }


def validations(model: Path) -> dict[int, float]:
    """{step: validation top-1 in percent} of a finished training, by its history.csv."""
    rows = storage.read_csv(model / "history.csv")
    return {int(row["step"]): float(row["val/top1"]) for row in rows if row.get("val/top1")}


def validation_images(ws: Workspace, dataset: str) -> int:
    """The number of validation images of a data set; 0 if its summary is missing."""
    summary = ws.data(dataset).with_suffix(".json")
    count: int = storage.read_json(summary)["images"].get("val", 0) if summary.is_file() else 0
    return count
