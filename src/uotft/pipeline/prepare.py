"""The stage prepare: a data set's files -> data/DATASET.npz."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from uotft.core import config, locks, storage
from uotft.core.errors import UserError
from uotft.core.records import ImageSet, Progress
from uotft.data import appearance, checks, duplicates, files
from uotft.data.archives import card_of
from uotft.data.pixel_cache import Store
from uotft.pipeline import image_places
from uotft.pipeline.workspace import Workspace

logger = logging.getLogger(__name__)


def prepare(ws: Workspace, dataset: str, *, progress: Progress) -> str:
    """Write data/DATASET.npz and its summary; returns a line that says what was written."""
    lock = ws.root / "cache" / f".{dataset}.prepare.lock"
    with locks.exclusive(lock, f"{ws.data(dataset)} is being made by another process"):
        return _prepare(ws, dataset, progress)


def _prepare(ws: Workspace, dataset: str, progress: Progress) -> str:
    module, settings = config.known_dataset(ws.params, dataset)
    images, bad = ws.decoding(dataset, module.load(settings, progress, ws.root)), {}
    if dataset in ws.params.targets and len(images.names) < 2:
        raise UserError(
            f"{dataset}: all its images are of the class {images.names[0]!r}; a target needs at "
            "least two classes"
        )
    if isinstance(images.images, Store):
        everything = np.arange(len(images.labels))
        bad = images.images.fill(everything, progress, keep=images.images.is_small)
        images = files.without(images, bad)
        seen = appearance.looks(images, dataset, progress)
        images = replace(images, notes=(*images.notes, *seen))
    if images.files is not None:
        images = duplicates.noted(images)
    found = [*checks.classes_without(images), *checks.near_copies(images, progress)]
    images = replace(images, notes=(*images.notes, *found))
    image_places.write(ws, dataset, images)
    if isinstance(images.images, Store):
        _remove_others(images.images.folder)
    counts = {split: len(images.rows(split)) for split in dict.fromkeys(images.splits.tolist())}
    notes = _anywhere(images, images.notes)
    for note in notes:
        logger.warning("%s: %s", dataset, note)
    summary = {
        "classes": len(images.names),
        "images": counts,
        "names": list(images.names),
        "settings": ws.prepared_as(dataset),
        **({"unreadable": _anywhere(images, bad.values())} if bad else {}),
        **({"notes": notes} if notes else {}),
    }
    storage.write_json(ws.data(dataset).with_suffix(".json"), summary)
    parts = ", ".join(f"{n} {split}" for split, n in counts.items()) or "no"
    classes = f"{len(images.names)} classes" if getattr(settings, "labels", True) else "no labels"
    return f"{dataset}: {classes}, {parts} images{_official(module, counts)}"


def _anywhere(images: ImageSet, lines: Iterable[str]) -> list[str]:
    """Lines with paths relative to the set's folder, since versioned files go to other machines."""
    root = images.files.root if images.files is not None else ""
    return [line.replace(f"{root}/", "") if root else line for line in lines]


def _official(module: Any, counts: dict[str, int]) -> str:
    """The published counts of a public set if ``counts`` differ: a list may be cut off."""
    card = card_of(module)
    if card is None:
        return ""
    made = card.images
    here = counts | {"train": counts["train"] + counts.get("val", 0) * ("val" not in made)}
    if all(here.get(part) == n for part, n in made.items()):
        return ""
    return f"; its makers count {', '.join(f'{n} {part}' for part, n in made.items())}"


def _remove_others(folder: Path) -> None:
    """Remove the pixels of earlier versions of the data set, and leftovers of killed processes."""
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
